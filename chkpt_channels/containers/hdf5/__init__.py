"""HDF5 files: reading with the library, in a process of its own, and editing."""
