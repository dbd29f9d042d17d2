"""Files that are whole or not there, here and in object stores; locks; the cache."""
