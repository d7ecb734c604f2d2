"""The commands: one file each, with its options, the function that the package exports, and its page on the terminal."""
