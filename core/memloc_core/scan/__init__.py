"""Scanning a corpus for what a model recites: which of its windows, and how often each one occurs.

    corpora.streams -> windows -> kernel -> blocks in a folder -> one set of paragraphs

`job` runs a scan over whatever engines it is given; `folder` holds what is finished, so that any kill costs one block.
"""
