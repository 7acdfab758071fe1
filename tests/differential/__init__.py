"""Random settings and sequences of requests; what is left is compared with a build from scratch, byte by byte."""
