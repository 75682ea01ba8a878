"""Files of a run, and how they are written safely.

``run_folder``   reserves the folder for one run at a time; ``atomic`` writes files whole or not at all
``run_log``      run.json, metrics and evaluations; ``memory`` state of methods between steps
``checkpoint``   everything that a stopped run needs to continue exactly
``fingerprint``  digests of models and data; ``provenance`` the teachers of a student
"""
