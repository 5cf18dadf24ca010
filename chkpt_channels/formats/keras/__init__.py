"""Keras: HDF5 files and .keras archives, whole models and weights."""
