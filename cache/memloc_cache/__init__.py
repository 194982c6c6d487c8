"""Results on disk, safely: `from memloc_cache.store import ResultCache, CacheStats`.

`store` is what the session talks to, `rows` is diskcache made unable to unpickle or to touch files, `place` is the
folder and its files. Importing any of this package but `rows` loads neither diskcache nor numpy.
"""
