"""Objects in stores, read by ranges: S3, the web and Hugging Face's hub."""
