"""A grammar of Keras models, written from Keras' layers, and what a conversion of them is worth by Keras' own answer."""
