"""The steps of ``deploy/ascend/first_hour.py``, a subject a file; what they share is in ``report`` and ``bench``."""
