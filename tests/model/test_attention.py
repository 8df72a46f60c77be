"""Which of torch's attention kernels are allowed."""

import torch

from tests.conftest import make_policy


def test_a_policy_turns_off_the_kernel_whose_gradient_can_be_nan(folders):
    torch.backends.cuda.enable_cudnn_sdp(True)
    make_policy("qwen2", folders)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()
