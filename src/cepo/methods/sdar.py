"""SDAR (arXiv 2605.15155): GRPO plus a gated likelihood of the policy's own tokens, where a hinted teacher agrees.

Beside GRPO's loss, with d = log P_T+ - log P_S [nats] and sg the stop-gradient, the paper minimizes

    sdar_coefficient * mean over tokens of sg[sigmoid(gate_scale d)] (sg[log P_T+] - log P_S)

whose gradient is that of a token advantage. So here it is one, in the same PPO term:

    A_t = A + sdar_coefficient sigmoid(gate_scale d)

In the first optimizer step of a generation batch both have the same gradient. In later steps (`num_iterations`,
`steps_per_generation`) the importance ratio and the PPO clip apply to the bonus too, and the gate uses the log-probs of
the batch rather than the current ones. The gate ignores the reward; zero-variance groups are scored and trained on.

Source: ms-swift dd0c45421 (compute_sdar_loss); the authors' scripts set the coefficient to 0.01.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .method import Method, MethodDoc
from .option_fields import option
from .options import HintOptions, TeacherOptions, token_mean_problem
from .stages import all_rollouts, hinted_and_unhinted
from .token_advantages import CreditInputs, TokenAdvantages


@dataclass(kw_only=True)
class SDAROptions(HintOptions, TeacherOptions):
    """The authors' values."""

    sdar_coefficient: float = option(0.01, "Weight of the gated likelihood beside GRPO's loss.", bounds={">=": 0})
    gate_scale: float = option(5.0, "Slope of the gate's sigmoid [1 / nats].", bounds={">": 0})

    def config_problem(self, config: Any) -> str | None:
        return token_mean_problem(config)


def gated(inputs: CreditInputs, options: SDAROptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """A + sdar_coefficient sigmoid(gate_scale d); A for tokens without a finite log-prob and rollouts not scored."""
    gate = (options.gate_scale * inputs.evidence).sigmoid().to(inputs.advantages.dtype)
    gate = gate.masked_fill(~inputs.scored.unsqueeze(-1) | inputs.unscorable, 0.0)
    advantages = inputs.advantages.unsqueeze(-1) + options.sdar_coefficient * gate
    return TokenAdvantages.of(inputs, advantages, scale=torch.full_like(inputs.advantages, options.sdar_coefficient))


METHOD = Method(
    name="sdar",
    doc=MethodDoc(
        summary="all of it, and a small bonus that grows with a hinted teacher's agreement",
        source="arXiv 2605.15155",
        formula="A + c sigmoid(b log(P_T+ / P_S))",
        hints="r+",
        sign="no",
        bounds="0 <= A_t - A <= c",
        passes="1",
    ),
    options=SDAROptions,
    contexts=hinted_and_unhinted,
    rollout_filter=all_rollouts,
    assign_credit=gated,
)
