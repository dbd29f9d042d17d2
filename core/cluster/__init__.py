"""Where trials run: slots, nodes, Ray, or this process."""

import os

# Ray and Tune read these when they are imported or initialised.
SETTINGS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this environment, not one built by uv
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they import torch here and flush on every report
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C must end the study, not look like its end
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # we say it in a line of our own
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",  # the dispatcher alone decides how many wait for Ray
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
for _key, _value in SETTINGS.items():
    os.environ.setdefault(_key, _value)
