"""The tests: one file for each module of the package, in a folder of the same name."""
