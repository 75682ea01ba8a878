"""What a run keeps on disk, and how it is kept safely.

``run_folder``   takes the folder for one run at a time; ``atomic`` writes files whole or not at all
``run_log``      run.json, metrics and evaluations; ``memory`` what methods remember between steps
``checkpoint``   everything that a killed run needs to go on exactly
``fingerprint``  digests of models and data; ``provenance`` which teachers a student had
"""
