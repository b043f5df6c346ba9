import subprocess
import sys

GPUS = """
import sys
import torch
from finetune import warm

touched = []
torch.cuda._lazy_init = lambda: touched.append(True)
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
assert warm._import_libraries() == 2
assert not touched and "transformers.modeling_utils" in sys.modules
try:
    import peft
except AttributeError:  # of a PyTorch that knows no CUDA
    pass
assert touched  # so that what imports bitsandbytes has to wait for the fork
"""


def test_what_trials_are_forked_from_leaves_gpus_alone():
    subprocess.run([sys.executable, "-c", GPUS], check=True, timeout=120)
