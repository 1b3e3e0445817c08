"""Published systems as rows of parts."""
