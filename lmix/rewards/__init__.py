"""Rewards of completions: callables on groups, and their weighted sum."""

from lmix.rewards.reward import Reward, verifier_reward
from lmix.rewards.weighted import RewardSum

__all__ = ["Reward", "RewardSum", "verifier_reward"]
