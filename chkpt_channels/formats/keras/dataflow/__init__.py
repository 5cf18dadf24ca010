"""What becomes of the image on its way through a Keras model."""
