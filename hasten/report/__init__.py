"""Records rendered for people: content first, then one file per medium."""
