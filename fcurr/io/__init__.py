"""The impure edge of the library: files, clock, terminal."""
