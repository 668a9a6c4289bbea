"""What a compilation did, for people (tables) and for machines (a JSON document of a versioned schema)."""
