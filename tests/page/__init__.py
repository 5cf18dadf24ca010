"""The page in headless Chromium, served from build/page, without a network: `make test-page`."""
