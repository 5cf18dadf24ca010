"""Random networks from a small grammar, as torch modules: what differs between two counts of channels is the truth about which
kernels read the image. Needs torch; `python -m tests.support.networks SEED` shows one."""
