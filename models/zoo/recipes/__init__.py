"""One module per name that fetch.py knows.

Each states its ``LICENCE`` and has ``prepare(packages, folder)``, which fills the folder with the model and
its samples and returns the figures measured with the fp32 model.
"""
