"""How models lie in files: weights stay there until something asks for them."""
