"""Recipes that turn models and data found inside ordinary packages into ready ONNX files and samples."""
