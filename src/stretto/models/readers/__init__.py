"""From the configuration keys of each family to a ``ModelSpec``. Defaults are those of the family's first release.

One function per kind of decoder, in the module of its kin; ``common`` holds what they share.
"""
