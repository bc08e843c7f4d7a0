"""A disk that is full."""

import resource
from contextlib import contextmanager


@contextmanager
def largest_file(size):
    """Lets no file grow beyond a size, as on a full disk: where Linux sends SIGXFSZ, Python gets an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
