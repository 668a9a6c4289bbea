"""The built-in passes, one file each; imported as ``onnxcomp.passes``. The table is in ``onnxcomp.registry``."""
