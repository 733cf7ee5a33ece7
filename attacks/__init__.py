"""Hostile bundles that can be run: ``python -m attacks`` makes each, opens it, and says what ended.

All are consistent: whoever made them wrote sizes and digests that fit, as anyone can. A function
makes one from the bundle of this repository, and its docstring tells the story. What must happen: a
named error, or a right answer where the content is merely odd; no crash, no hang, no read and no
write outside of the folder.
"""
