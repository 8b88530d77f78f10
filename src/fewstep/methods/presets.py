"""Presets: published algorithms, each a few lines over the parts.

A preset takes the setting whose published hyper-parameters it holds (`omniglot`, `mini_imagenet` or `sinusoid`) and
the shots, which some of them depend on. Its docstring is what `fewstep presets NAME` prints.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

from fewstep.errors import unknown
from fewstep.methods.meta_losses import Distance
from fewstep.methods.method import Method
from fewstep.methods.parts import All, Body, Head, Norm, Outer, Recipe
from fewstep.methods.rules import PerLayerPerStep, PerParameter, Sgd
from fewstep.methods.schedules import Annealed, Constant, Cosine, FirstOrder, FirstThenSecond, Linear

Setting = Literal["omniglot", "mini_imagenet", "sinusoid"]


def maml(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """Model-agnostic meta-learning: learn an initialisation that a few gradient steps adapt.

        θ_{i+1} = θ_i − α ∇L_support(θ_i),     θ ← θ − β ∇_θ mean_tasks L_query(θ_N)

    Paper: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", ICML 2017, arXiv 1703.03400.

    Differences:
        - The paper's code sums the loss over ways: its rates 0.4 (Omniglot 5-way, one step), 0.1 (20-way, five steps)
          and 0.01 (mini-ImageNet) are 2.0, 2.0 and 0.05 for the mean used here. On Omniglot this preset takes
          five steps of 0.1, the MAML baseline of the MAML++ paper, so that each change of MAML++ can be told apart;
          the paper's own is `--inner-rate 2.0 --steps 1 --downsample stride --tasks 32` (20-way: five steps, 16 tasks).
        - Norm layers keep a weight beside the bias, with epsilon 1e-5; the paper's code has a bias only, 1e-3.
        - Conv4 has LeakyReLU of slope 0.01 and a Xavier head where the paper's code has ReLU and, on Omniglot, a head
          drawn from N(0, 1); on mini-ImageNet the paper has 32 filters (`--filters 32`).
        - Evaluation takes the trained steps; the paper evaluates with 3 or 10 (`fewstep evaluate --steps 10`).
        - Test tasks are not rotated and characters are cut 1150 / 50 / 423; the paper's code rotates them and cuts
          1100 / 100 / 423 in an order that depends on the machine.
    """
    if setting == "sinusoid":
        return Method("maml", steps=1, rule=Sgd(0.01), recipe=Recipe(epochs=140, iterations=500, tasks=25))
    if setting == "mini_imagenet":
        recipe = Recipe(epochs=120, iterations=500, tasks=4 if shots == 1 else 2)
        return Method("maml", rule=Sgd(0.05), outer=Outer(clamp=10.0), recipe=recipe)
    return Method("maml", rule=Sgd(0.1), recipe=Recipe(epochs=120, iterations=500, tasks=32))


def fomaml(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """First-order MAML: the inner gradients are constants, so no second derivative is taken.

        θ ← θ − β mean_tasks ∇_φ L_query(φ) at φ = θ_N

    Paper: Finn, Abbeel, Levine, ICML 2017, arXiv 1703.03400, section 5.2.

    Differences: those of `maml`.
    """
    return maml(setting, shots).replace(name="fomaml", order=FirstOrder())


def maml_plus_plus(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """MAML++ as its paper describes it: MAML with six changes that stabilise it.

        θ_{l,i+1} = θ_{l,i} − α_{l,i} ∇_l L_support(θ_i; γ_i, β_i)
        meta-loss = mean_tasks Σ_i w_i(p) L_query(θ_{i+1}; γ_i, β_i)

    The six changes, each one field:
        MSL   step_weights = Annealed: query loss after every step, annealed to the last over 15 of 150 epochs
        DA    order = FirstThenSecond: first order for 50 of 150 epochs
        BNRS  norm.statistics: `batch` here; `running` normalises evaluation by running statistics of each step
        BNWB  norm.affine = per_step: a norm weight and bias for every inner step, outside the inner loop
        LSLR  rule = PerLayerPerStep: a learned rate for every tensor and step, starting at 0.1
        CA    outer.rate = Cosine: 1e-3 to 1e-5 over the training

    Paper: Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019, arXiv 1810.09502.

    Differences:
        - BNRS: the released code keeps running statistics of each step and never normalises by them. This preset
          evaluates by the batch as that code does; `--statistics running` is what the paper's text describes.
        - Adam's second decay is 0.99 as in the paper's text; the released code has 0.999.
        - The meta-loss is the mean over tasks; the paper writes a sum, which Adam does not notice.
        - Block order conv, norm, activation, pool, as in the newest released code; the paper's code had norm first.
        - Running statistics are those of support passes; the released code mixes support and query passes into them.
        - On sinusoids, which the paper has none of, rates start at `maml`'s 0.01: with 0.1 adapting diverges.
    """
    tasks = 16 if setting != "mini_imagenet" else 4 if shots == 1 else 2
    return Method(
        "maml++",
        rule=PerLayerPerStep(0.01 if setting == "sinusoid" else 0.1),
        order=FirstThenSecond(until=50 / 150, levels=150),
        step_weights=Annealed(over=15 / 150, levels=150),
        norm=Norm(affine="per_step"),
        outer=Outer(rate=Cosine(1e-3, 1e-5, levels=150), betas=(0.9, 0.99)),
        recipe=Recipe(epochs=150, iterations=500, tasks=tasks, ensemble=3),
    )


def maml_plus_plus_released(setting: Setting = "omniglot", shots: int = 1) -> Method:  # noqa: ARG001 - one signature
    """MAML++ as its newest released code runs it, with the values of its configuration files that the code reads.

        θ_{l,i+1} = θ_{l,i} − α_{l,i} ∇_l L_support(θ_i; γ_i, β_i)
        meta-loss = mean_tasks Σ_i w_i(p) L_query(θ_{i+1}; γ_i, β_i)

    The code is AntreasAntoniou/HowToTrainYourMAMLPytorch, commit 86964701.

    Paper: Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019, arXiv 1810.09502.

    Differences from `maml++`:
        - second order from the first step: derivative-order annealing is off in every released configuration;
        - multi-step loss over 10 of 100 epochs (15 of 100 on mini-ImageNet), floor 0.03/N, which never binds;
        - Adam's betas 0.9 and 0.999; 100 epochs of 500 steps of 8 tasks (2 on mini-ImageNet); ensemble of five;
        - on mini-ImageNet a constant outer rate, and gradients clamped to ±10 but for the learned rates.

    Differences from the released code:
        - one rate for each trained step, where the code keeps a spare one that gets no gradient;
        - more evaluation steps than trained reuse the last row, where the code fails;
        - running statistics are those of support passes, where the code mixes in query passes and never reads them;
        - the data default to ink 1 on grey-scaled drawings; the code has ink 0 and nearest pixels
          (`--invert False --resize nearest`).
    """
    mini = setting == "mini_imagenet"
    return Method(
        "maml++-released",
        rule=PerLayerPerStep(0.01 if setting == "sinusoid" else 0.1),
        step_weights=Annealed(over=(15 if mini else 10) / 100, levels=100),
        norm=Norm(affine="per_step"),
        outer=Outer(rate=Constant(1e-3), clamp=10.0) if mini else Outer(rate=Cosine(1e-3, 1e-5, levels=100)),
        recipe=Recipe(epochs=100, iterations=500, tasks=2 if mini else 8, ensemble=5),
    )


def anil(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """ANIL: almost no inner loop; only the head is adapted, everything is learned.

        θ_{i+1}^head = θ_i^head − α ∇_head L_support(θ_i),     θ^body stays

    Paper: Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020, arXiv 1909.09157.

    Differences:
        - The paper's inner rates for these data are not at hand: those of `maml` are taken.
        - The head is the module that holds the model's last parameter.
    """
    return maml(setting, shots).replace(name="anil", adapted=Head())


def boil(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """BOIL: body only in the inner loop; the head stays as it was initialised by the outer loop.

        θ_{i+1}^body = θ_i^body − α ∇_body L_support(θ_i),     θ^head stays

    Paper: Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021, arXiv 2008.08882.

    Differences:
        - Rates and steps are those of `maml`; norm weights stay out of the inner loop.
    """
    return maml(setting, shots).replace(name="boil", adapted=Body())


def meta_sgd(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """Meta-SGD: learn the initialisation and a rate for every scalar, and adapt in one step.

        θ' = θ − α ∘ ∇L_support(θ),     (θ, α) ← (θ, α) − β ∇_{θ,α} mean_tasks L_query(θ')

    Paper: Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", arXiv 1707.09835.

    Differences:
        - Rates start uniformly in [0.005, 0.1], a value that the sources at hand do not confirm.
    """
    return maml(setting, shots).replace(name="meta-sgd", steps=1, rule=PerParameter(0.005, 0.1))


def reptile(setting: Setting = "omniglot", shots: int = 1) -> Method:  # noqa: ARG001 - one signature
    """Reptile: move the initialisation towards where a few inner steps lead; needs no query labels in training.

        θ ← θ + β(p) mean_tasks (θ_N − θ),     β(p) = 1 − p

    Paper: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", arXiv 1803.02999.

    Differences:
        - The inner loop is gradient descent on the whole support set, with the rates of `maml` and norm weights
          included; the released code runs Adam (first decay zero, its state carried from task to task) on minibatches
          of 10 to 15 images a class, more than the shots it evaluates with, and takes 50 steps at evaluation
          (`fewstep evaluate --steps 50`).
    """
    rate = {"sinusoid": 0.01, "mini_imagenet": 0.05, "omniglot": 0.1}[setting]
    return Method(
        "reptile",
        rule=Sgd(rate),
        adapted=All(),
        order=FirstOrder(),
        meta_loss=Distance(),
        outer=Outer(rate=Linear(1.0, 0.0), optimiser="sgd"),
        recipe=Recipe(epochs=200, iterations=500, tasks=5),
    )


def sam(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """Sharpness-aware minimisation of an ordinary network: no inner step, the gradient at the worst nearby point.

        θ ← θ − β ∇L(θ + ε),     ε = ρ ∇L(θ) / ‖∇L(θ)‖

    Paper: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization", ICLR 2021, arXiv 2010.01412.

    Differences:
        - ρ is 0.05, the default of a common implementation; the outer optimiser is Adam.
    """
    return maml(setting, shots).replace(name="sam", steps=0, sharpness__outer=0.05)


def sharp_maml_low(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """Sharp-MAML, perturbed at the inner loop.

        θ_{i+1} = θ_i − α ∇L_support(θ_i + ε_i),     ε_i = ρ ∇L_support(θ_i) / ‖∇L_support(θ_i)‖

    Paper: Abbas, Xiao, Chen, Chen, Chen, "Sharp-MAML", ICML 2022, arXiv 2206.03996, steps (11) and (12).

    Differences:
        - The paper has one inner step; as in its code, ε is taken anew at each of five.
        - ρ is 0.0005, the only documented value (mini-ImageNet 5-way 1-shot); rates are those of `maml`, where the
          code takes 0.1 on mini-ImageNet.
        - Meta-test adapts with plain steps, as the code's test script does; ask `adapt` for `sharp=True` otherwise.
    """
    return maml(setting, shots).replace(name="sharp-maml-low", sharpness__inner=5e-4)


def sharp_maml_up(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """Sharp-MAML, perturbed at the outer loop.

        θ ← θ − β ∇h(θ + ε),     ε = ρ ∇h(θ) / ‖∇h(θ)‖,     h = mean_tasks L_query(θ_N)

    Paper: Abbas, Xiao, Chen, Chen, Chen, "Sharp-MAML", ICML 2022, arXiv 2206.03996, steps (13) to (15).

    Differences: those of `sharp-maml-low`; the norm is taken over the model's and norms' tensors, not over rates.
    """
    return maml(setting, shots).replace(name="sharp-maml-up", sharpness__outer=5e-4)


def sharp_maml_both(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """Sharp-MAML, perturbed at both loops.

        θ ← θ − β ∇h(θ + ε),     θ_{i+1} = θ_i − α ∇L_support(θ_i + ε_i)

    Paper: Abbas, Xiao, Chen, Chen, Chen, "Sharp-MAML", ICML 2022, arXiv 2206.03996, steps (11) to (15).

    Differences:
        - Those of `sharp-maml-low`.
        - As in the code, the inner ε_i are recomputed in the second pass; step (14) as printed reuses them.
    """
    return sharp_maml_low(setting, shots).replace(name="sharp-maml-both", sharpness__outer=5e-4)


def sharp_maml_plus_plus(setting: Setting = "omniglot", shots: int = 1) -> Method:
    """MAML++ with Sharp-MAML's perturbations at both loops; unpublished.

        θ_{l,i+1} = θ_{l,i} − α_{l,i} ∇_l L_support(θ_i + ε_i; γ_i, β_i),     outer gradient at (θ, γ, β) + ε

    Paper: none; the parts are of arXiv 1810.09502 and arXiv 2206.03996.

    Differences: those of `maml++` and `sharp-maml-both`.
    """
    return maml_plus_plus(setting, shots).replace(name="sharp-maml++", sharpness__inner=5e-4, sharpness__outer=5e-4)


PRESETS: dict[str, Callable[[Setting, int], Method]] = {
    "maml": maml,
    "fomaml": fomaml,
    "anil": anil,
    "boil": boil,
    "meta-sgd": meta_sgd,
    "maml++": maml_plus_plus,
    "maml++-released": maml_plus_plus_released,
    "reptile": reptile,
    "sam": sam,
    "sharp-maml-low": sharp_maml_low,
    "sharp-maml-up": sharp_maml_up,
    "sharp-maml-both": sharp_maml_both,
    "sharp-maml++": sharp_maml_plus_plus,
}


def preset_names() -> list[str]:
    """The names that `preset` knows.

    Example:
        >>> "maml++" in preset_names()
        True
    """
    return list(PRESETS)


def preset(name: str, *, setting: Setting = "omniglot", shots: int = 1, **changes: Any) -> Method:
    """A published algorithm as a `Method`, with any of its parts changed.

    Arguments:
        name: one of `preset_names()`.
        setting, shots: whose published hyper-parameters to take.
        changes: fields of `Method`; `norm__affine` and the like reach into a part.

    Raises:
        BadInput: an unknown preset, setting or field; the message names the nearest.

    Example:
        >>> preset("maml++", steps=3, norm__statistics="support").steps
        3
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    if setting not in get_args(Setting):
        raise unknown("setting", setting, get_args(Setting))
    return PRESETS[name](setting, shots).replace(**changes)
