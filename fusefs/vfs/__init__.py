"""The file system itself: names, open files, buffers and caches. Knows neither pyfuse3 nor sockets."""
