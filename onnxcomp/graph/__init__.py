"""Questions about a graph, and edits that several passes need. Knows no particular pass."""
