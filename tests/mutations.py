"""Plants one-line bugs in a copy of the package, one at a time, and asks the tests to catch them.

    python tests/mutations.py > mutations.md

Prints a Markdown table of the bugs and of the first test that failed for each; the exit code is the
number of bugs that nobody caught. Three minutes on one idle core.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Bug(NamedTuple):
    """`right` becomes `wrong` in `file`; `tests` are the files that should notice."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


BUGS = [
    Bug(
        "rare words are worth tokens",
        "sizes.py",
        "sum(count >= SEEN for",
        "sum(count >= 1 for",
        "sizes",
    ),
    Bug(
        "text without spaces is one word",
        "sizes.py",
        "    if len(text) < UNSPACED * len(words):\n",
        "    if True:\n",
        "sizes",
    ),
    Bug(
        "half of the texts fit",
        "sizes.py",
        "ENOUGH = 0.99",
        "ENOUGH = 0.5",
        "sizes",
    ),
    Bug(
        "small data train for fifty steps",
        "sizes.py",
        "max(SHORTEST, EPOCHS * epoch)",
        "EPOCHS * epoch",
        "sizes",
    ),
    Bug(
        "the end of a target is not counted",
        "data.py",
        "[len(ids) + i for ids",
        "[len(ids) for ids",
        "sizes",
    ),
    Bug(
        "the prefix of sources is not counted",
        "data.py",
        '(self.hparams.source_prefix, "")[i]',
        '("", "")[i]',
        "sizes",
    ),
    Bug(
        "steps are chosen over those that are given",
        "train.py",
        "trainer.training and trainer.max_steps == -1 and",
        "trainer.training and",
        "sizes",
    ),
    Bug(
        "accumulation is forgotten",
        "train.py",
        "epoch = epoch and max(1, epoch // trainer.accumulate_grad_batches)",
        "epoch = epoch and max(1, epoch)",
        "sizes",
    ),
    Bug(
        "a checkpoint's lengths are forgotten",
        "cli.py",
        "            adopt(config.data, Config(",
        "            (config.data, Config(",
        "sizes",
    ),
    Bug(
        "the lengths of the model to fine-tune are forgotten",
        "cli.py",
        "            adopt(config.data, read_config(folder))\n",
        "",
        "sizes",
    ),
    Bug(
        "distillation begins anew",
        "../scripts/distill.py",
        "else len(lines) // chunk * chunk",
        "else 0",
        "distill",
    ),
    Bug(
        "distillation goes on inside a chunk",
        "../scripts/distill.py",
        "else len(lines) // chunk * chunk",
        "else len(lines)",
        "distill",
    ),
    Bug(
        "another teacher's texts are kept",
        "../scripts/distill.py",
        '        own &= {row["teacher"] for row in rows} <= {teacher}\n',
        "",
        "distill",
    ),
    Bug(
        "words outside their class",
        "process/hierarchical.py",
        "        inside = probs * possible\n",
        "        inside = probs\n",
        "hierarchical",
    ),
    Bug(
        "a class that knows no word to come",
        "process/hierarchical.py",
        "torch.where(fine, clean, self.coarsen(clean))",
        "torch.where(fine, self.coarsen(clean), clean)",
        "hierarchical",
    ),
    Bug(
        "words paid for as classes",
        "process/hierarchical.py",
        "nats = refined * word + (1 - refined) * coarse",
        "nats = refined * coarse + (1 - refined) * word",
        "hierarchical",
    ),
    Bug(
        "classes gone before words",
        "process/hierarchical.py",
        "return (2 * kept - 1).clamp(min=0), (2 * kept).clamp(max=1)",
        "return (2 * kept).clamp(max=1), (2 * kept - 1).clamp(min=0)",
        "hierarchical",
    ),
    Bug(
        "masks that leave at the pace of classes",
        "process/hierarchical.py",
        "return refined, (classes_s - classes_t) / (1 - classes_t).clamp(min=TINY)",
        "return refined, refined",
        "hierarchical",
    ),
    Bug(
        "classes by what follows alone",
        "classes.py",
        "        before.index_put_((second, place[first]), ones, accumulate=True)\n",
        "",
        "hierarchical",
    ),
    Bug(
        "common words first",
        "process/discrete.py",
        "        own = kept - self.strength",
        "        own = kept + self.strength",
        "discrete",
    ),
    Bug(
        "a mask that tells nothing",
        "process/discrete.py",
        "hidden * (x_t == self.mask_id)[..., None]",
        "0 * hidden * (x_t == self.mask_id)[..., None]",
        "discrete",
    ),
    Bug(
        "what is lost counted for all words alike",
        "process/discrete.py",
        "lost = (part * (1 - k_s) * share)",
        "lost = ((1 - k_s) * share)",
        "discrete",
    ),
    Bug(
        "fresh words from where they stood",
        "process/tokens.py",
        "self.corrupt(clean, s, noise), x_s)",
        "self.corrupt(x_s, s, noise), x_s)",
        "discrete",
    ),
    Bug(
        "the prior of the simplex at zero",
        "process/gaussian.py",
        ".add_(alpha * self.centre)",
        "",
        "simplex",
    ),
    Bug(
        "a density that starts at zero",
        "likelihood.py",
        "(end[:, 1:] - process.centre)",
        "end[:, 1:]",
        "likelihood",
    ),
    Bug(
        "prompts that are not written",
        "twin.py",
        "        other = (token != OPEN) & (torch",
        "        other = (token == OPEN) & (torch",
        "twin",
    ),
    Bug(
        "prompts that stay with their row",
        "twin.py",
        "self.texts, self.prompt = self.texts[rows], self.prompt[rows]",
        "self.texts = self.texts[rows]",
        "twin",
    ),
    Bug(
        "a length penalty that counts the prompt",
        "twin.py",
        "own = step + 1 - (writer.prompt[::k] != OPEN).sum(1, keepdim=True)",
        "own = step + 1 - 0 * (writer.prompt[::k] != OPEN).sum(1, keepdim=True)",
        "twin",
    ),
    Bug(
        "padding copied",
        "pointer.py",
        "scores.masked_fill(~context.mask[:, None], -torch.inf)",
        "scores",
        "pointer",
    ),
    Bug(
        "copies beside a whole vocabulary",
        "pointer.py",
        "torch.softmax(logits.float(), -1) * share[..., :1]",
        "torch.softmax(logits.float(), -1)",
        "pointer",
    ),
    Bug(
        "copied words weighed by how common they are",
        "denoiser.py",
        "+ self.bar + log_posterior - prior",
        "+ self.bar + log_posterior",
        "pointer",
    ),
    Bug(
        "parts of a source that see each other",
        "encoder.py",
        "size = min(length, len(self.position.weight))",
        "size = length",
        "denoiser",
    ),
    Bug(
        "parts without their number",
        "encoder.py",
        "            h = h + self.part(part)[:, None]\n",
        "",
        "denoiser",
    ),
    Bug(
        "controls without their weight",
        "control/steering.py",
        "told = control.weight * ",
        "told = ",
        "control",
    ),
    Bug(
        "alpha and sigma of the shift swapped",
        "control/steering.py",
        "alpha, sigma = self.process",
        "sigma, alpha = self.process",
        "control",
    ),
    Bug(
        "a gap in what controls see",
        "control/steering.py",
        "order = (~valid).long()",
        "order = (0 * valid).long()",
        "control",
    ),
    Bug(
        "controls told to the wrong tokens",
        "control/steering.py",
        "place = order.argsort(1)[:, ids.shape[1] :]",
        "place = order[:, ids.shape[1] :]",
        "control",
    ),
    Bug(
        "given words unknown to controls",
        "control/steering.py",
        "torch.where(mask[..., None], probs, known)",
        "probs",
        "control",
    ),
    Bug(
        "words count after the end",
        "control/words.py",
        "on, now = (1 - end - start).clamp(min=0)",
        "on, now = (1 - start).clamp(min=0)",
        "control",
    ),
    Bug(
        "an end is no end for words",
        "control/words.py",
        "out[..., eos_id] = before.to(probs)",
        "pass",
        "control",
    ),
    Bug(
        "a word counts where its start is cut",
        "control/words.py",
        "torch.where(begin == place - r, right - other, 0.0)",
        "right - other",
        "control",
    ),
    Bug(
        "a word certain without its other tokens",
        "control/words.py",
        "for k in range(size) if k != r",
        "for k in range(size) if k > r",
        "control",
    ),
    Bug(
        "the gradient's own mean forgotten",
        "control/classifier.py",
        "slope - (slope * view.probs)",
        "slope * 0 - (slope * view.probs)",
        "control",
    ),
    Bug(
        "the same draw at every place",
        "control/score.py",
        "torch.randperm(self.samples, generator=generator)",
        "torch.arange(self.samples)",
        "control",
    ),
    Bug(
        "classifier reads padding",
        "control/classifier.py",
        "mask = (place < len(self.after)).long()",
        "mask = (place < 99).long()",
        "classifier",
    ),
    Bug(
        "classifier reads beyond EOS",
        "control/classifier.py",
        "(valid & (probs[..., self.eos_id] < 0.5))",
        "valid",
        "classifier",
    ),
    Bug(
        "too much is read before a block",
        "blocks.py",
        "self.max_length - n for n in count",
        "self.max_length - n - 1 for n in count",
        "blocks",
    ),
    Bug(
        "padding after the end of a block", "blocks.py", "place >= length[:, None]", "place < 0", "blocks"
    ),
    Bug(
        "a text goes on after EOS",
        "blocks.py",
        "if self.eos_id in ids else ids",
        "if False else ids",
        "blocks",
    ),
    Bug("the same noise in every block", "blocks.py", "valid, block=block)", "valid, block=0)", "blocks"),
    Bug(
        "a block runs on where the text does",
        "blocks.py",
        "torch.where(ends, max_length, length)",
        "torch.where(ends, max_length, max_length)",
        "blocks",
    ),
    Bug(
        "padding before a block is seen",
        "denoiser.py",
        "torch.cat([past.mask, valid], 1)",
        "torch.cat([torch.ones_like(past.mask), valid], 1)",
        "blocks",
    ),
    Bug(
        "a block counts from its own start",
        "denoiser.py",
        "past.mask.sum(1, keepdim=True) + place",
        "0 * past.mask.sum(1, keepdim=True) + place",
        "blocks",
    ),
    Bug(
        "rotary positions count padding",
        "denoiser.py",
        "past.states or None, place)",
        "past.states or None)",
        "blocks",
    ),
    Bug(
        "an open block is told the end",
        "denoiser.py",
        "place.clamp(max=self.max_length - 1), self.open_end[None, None]",
        "place.clamp(max=self.max_length - 1), self.remaining(0 * place)",
        "blocks",
    ),
    Bug(
        "simplex corners too close",
        "process/simplex.py",
        "return (2 * probs).sub_(1)",
        "return probs",
        "simplex",
    ),
    Bug(
        "simplex likelihood of half the distance",
        "process/simplex.py",
        "return 2 * alpha",
        "return alpha",
        "laws",
    ),
    Bug("half width forgotten", "process/simplex.py", "unit * x_t", "x_t", "simplex"),
    Bug(
        "coloured noise taken for white",
        "process/simplex.py",
        "torch.linalg.cholesky(covariance), table.T",
        "torch.eye(len(covariance)).to(table), table.T",
        "simplex",
    ),
    Bug(
        "norms forgotten in the linear simplex",
        "process/simplex.py",
        "Gaussian.log_likelihood(self, x_t, t)",
        "super().log_likelihood(x_t, t)",
        "simplex",
    ),
    Bug(
        "step with the wrong sigma",
        "process/gaussian.py",
        "old = sigma_s * (",
        "old = sigma_t * (",
        "laws",
    ),
    Bug(
        "missing square in tau",
        "process/gaussian.py",
        "(alpha_s * sigma_t)) ** 2",
        "(alpha_s * sigma_t))",
        "laws",
    ),
    Bug(
        "missing square root of tau",
        "process/gaussian.py",
        "sigma_s * fresh.sqrt()",
        "sigma_s * fresh",
        "laws",
    ),
    Bug(
        "missing square root of 1 - tau",
        "process/gaussian.py",
        "old = sigma_s * (1 - fresh).sqrt()",
        "old = sigma_s * (1 - fresh)",
        "laws",
    ),
    Bug(
        "alpha_t forgotten",
        "process/gaussian.py",
        "alpha_s - old * alpha_t",
        "alpha_s - old",
        "laws",
    ),
    Bug(
        "s and t swapped in step",
        "process/gaussian.py",
        "(column(t, x_t))\n        alpha_s, sigma_s = self.schedule(column(s, x_t))",
        "(column(s, x_t))\n        alpha_s, sigma_s = self.schedule(column(t, x_t))",
        "laws",
    ),
    Bug(
        "corruption without alpha",
        "process/gaussian.py",
        "return alpha * x_0 + sigma",
        "return x_0 + sigma",
        "laws",
    ),
    Bug(
        "likelihood without alpha / sigma^2",
        "process/embedding.py",
        "alpha / sigma**2 * x_t",
        "x_t",
        "laws",
    ),
    Bug(
        "likelihood with sigma for sigma^2",
        "process/embedding.py",
        "alpha / sigma**2",
        "alpha / sigma",
        "laws",
    ),
    Bug("likelihood blind to norms", "process/gaussian.py", "codebook.T - square", "codebook.T", "laws"),
    Bug(
        "score with sigma for sigma^2",
        "process/gaussian.py",
        "- x_t) / sigma**2",
        "- x_t) / sigma",
        "laws",
    ),
    Bug(
        "features at the wrong variance",
        "process/gaussian.py",
        "codebook().square().mean()",
        "codebook().square().sum(-1).mean()",
        "denoiser",
    ),
    Bug(
        "codebook not normalised",
        "process/embedding.py",
        "F.normalize(self.embedding.weight, dim=-1)",
        "self.embedding.weight",
        "laws denoiser",
    ),
    Bug(
        "no unigram prior",
        "process/process.py",
        "self.log_likelihood(x_t, t) + self.log_prior",
        "self.log_likelihood(x_t, t)",
        "denoiser",
    ),
    Bug(
        "alpha and sigma swapped",
        "schedule.py",
        "torch.sigmoid(-gamma)",
        "torch.sigmoid(gamma)",
        "schedule",
    ),
    Bug("cosine without the half", "schedule.py", "0.5 * math.pi * u", "math.pi * u", "schedule"),
    Bug(
        "mask polarity when keeping",
        "sampler/sampler.py",
        ", new, given)",
        ", given, new)",
        "laws",
    ),
    Bug(
        "given tokens not kept between steps",
        "sampler/sampler.py",
        "x_t = predict.clear(x_s, s)",
        "x_t = x_s",
        "laws",
    ),
    Bug(
        "given tokens at the time of the others",
        "sampler/sampler.py",
        "return t * self.mask",
        "return t * torch.ones_like(self.mask)",
        "laws",
    ),
    Bug("given at random, noise at any time", "diffusion.py", ".masked_fill(settled, 1.0)", "", "model"),
    Bug(
        "padding counts as a place to give",
        "diffusion.py",
        "place.masked_fill(~mask, torch.inf)",
        "place",
        "model",
    ),
    Bug(
        "the schedule learns from tokens with given neighbours",
        "diffusion.py",
        "t.masked_fill(own | settled, torch.nan)",
        "t.masked_fill(own, torch.nan)",
        "model",
    ),
    Bug(
        "Muon without Nesterov",
        "optimizer.py",
        "torch._foreach_lerp(gradients, buffers, group",
        "torch._foreach_lerp(buffers, buffers, group",
        "optimizer",
    ),
    Bug(
        "the least sure tokens first", "sampler/sampler.py", "descending=True", "descending=False", "laws"
    ),
    Bug(
        "the order depends on what was drawn",
        "sampler/sampler.py",
        "self.sureness(predict).argsort",
        "predict.latest.gather(-1, probs.argmax(-1, True))[..., 0].where(predict.mask, -1).argsort",
        "oracle",
    ),
    Bug("neighbours count alone", "sampler/sampler.py", "sure * beside, sure)", "sure, sure)", "laws"),
    Bug(
        "steps beyond the tokens are spent",
        "sampler/sampler.py",
        "count.clamp(1, self.steps)",
        "torch.full_like(count, self.steps)",
        "laws",
    ),
    Bug(
        "settled tokens may change again",
        "sampler/sampler.py",
        "self.mask & ~chosen)",
        "self.mask & True)",
        "laws",
    ),
    Bug(
        "the last prediction forgets what was settled",
        "sampler/sampler.py",
        "        self.settle(self.latest)\n\n",
        "        pass\n\n",
        "laws",
    ),
    Bug("given tokens not settled", "sampler/sampler.py", "probs[self.known] = ", "_ = ", "laws"),
    Bug(
        "self-conditioning always off",
        "sampler/sampler.py",
        "self.previous = self.process.reread(self.latest)",
        "self.previous = None",
        "laws",
    ),
    Bug(
        "re-noising with the old noise",
        "sampler/sampler.py",
        "        self.tau = tau",
        "        self.tau = None",
        "laws",
    ),
    Bug(
        "DDIM with fresh noise",
        "sampler/sampler.py",
        "    tau, gaussian, draws = 0.0, True, False",
        "    tau, gaussian, draws = 1.0, True, False",
        "laws",
    ),
    Bug("time grid reversed", "sampler/sampler.py", "linspace(1, 0,", "linspace(0, 1,", "laws"),
    Bug(
        "the same noise at every step",
        "sampler/sampler.py",
        "self.noise = self.noise.at(step)",
        "self.noise = self.noise.at(0)",
        "laws",
    ),
    Bug(
        "noise blind to the step",
        "noise.py",
        "counter=[0, 0, block, step]",
        "counter=[0, 0, block, 0]",
        "noise",
    ),
    Bug(
        "noise keyed by place in the batch",
        "noise.py",
        "            for i in self.indices",
        "            for i in range(len(self.indices))",
        "noise",
    ),
    Bug(
        "noise drawn at the padded length",
        "noise.py",
        "shape[1] if self.lengths is None else self.lengths[i]",
        "shape[1]",
        "noise",
    ),
    Bug(
        "softmax over the wrong axis",
        "decoder.py",
        "self.temperature, dim=-1",
        "self.temperature, dim=1",
        "decoder",
    ),
    Bug(
        "temperature multiplies",
        "decoder.py",
        "logits.float() / self",
        "logits.float() * self",
        "decoder",
    ),
    Bug("sample on the wrong side of an edge", "noise.py", "right=True", "right=False", "decoder"),
    Bug(
        "top-p one token short",
        "decoder.py",
        "(top.cumsum(-1) - top < p)",
        "(top.cumsum(-1) < p)",
        "decoder",
    ),
    Bug(
        "guidance with the wrong sign",
        "denoiser.py",
        "self.scale * (conditional - null)",
        "self.scale * (null - conditional)",
        "denoiser",
    ),
    Bug(
        "analytic skip left out",
        "denoiser.py",
        "return logits + log_posterior",
        "return logits",
        "denoiser",
    ),
    Bug(
        "dropped source still seen",
        "encoder.py",
        "torch.ones_like(mask[:, :1]), mask]",
        "torch.ones_like(mask[:, :1]), torch.ones_like(mask)]",
        "denoiser",
    ),
    Bug(
        "length left counted from the start",
        "denoiser.py",
        "valid.sum(1, keepdim=True) - 1 - place",
        "place + 0 * valid.sum(1, keepdim=True)",
        "denoiser",
    ),
    Bug(
        "padding attended to",
        "transformer.py",
        "bias = bias_of(visible, like)",
        "bias = bias_of(None, like)",
        "denoiser",
    ),
    Bug(
        "length quantile on the wrong side",
        "length.py",
        "(length >= least",
        "(length > least",
        "denoiser",
    ),
    Bug(
        "padding stays where it is",
        "pretrained.py",
        "order = (~valid).long().argsort(dim=1, stable=True)",
        "order = (0 * valid).long().argsort(dim=1, stable=True)",
        "pretrained",
    ),
    Bug(
        "logits stay where padding put them",
        "pretrained.py",
        "logits.gather(1, order.argsort(1)[..., None].expand_as(logits))",
        "logits",
        "pretrained",
    ),
    Bug(
        "a pretrained network cannot see padding",
        "pretrained.py",
        "attention_mask=valid.gather(1, shown).long()",
        "attention_mask=torch.ones_like(shown)",
        "pretrained",
    ),
    Bug(
        "given words read as noise",
        "pretrained.py",
        "return torch.where(mask[..., None], h, self.words(self.known(x_t, mask)).to(h.dtype))",
        "return h",
        "import_checkpoint",
    ),
    Bug(
        "given words that are all the same",
        "pretrained.py",
        "ids[~mask] = self.process.round(x_t[~mask])",
        "pass",
        "pretrained",
    ),
    Bug(
        "embeddings of another scale",
        "diffusion.py",
        "process.normalised = False",
        "process.normalised = True",
        "pretrained",
    ),
    Bug(
        "no skip in a pretrained denoiser",
        "pretrained.py",
        "+ self.skip * log_posterior",
        "",
        "pretrained",
    ),
    Bug(
        "a first prediction that is not there unread",
        "pretrained.py",
        " + self.no_previous * (previous == 0).all(-1, keepdim=True)",
        "",
        "import_checkpoint",
    ),
    Bug(
        "missing weights unnoticed",
        "model.py",
        "set(found.missing_keys) - tied_names(model)",
        "set()",
        "bad_input",
    ),
    Bug(
        "another tokenizer than the network's",
        "pretrained.py",
        "if own.backend.get_vocab() != tokenizer.backend.get_vocab():",
        "if False:",
        "pretrained",
    ),
    Bug(
        "RoBERTa's positions counted from zero",
        "pretrained.py",
        "(0 if part.padding_idx is None else part.padding_idx + 1)",
        "0",
        "pretrained",
    ),
    Bug(
        "imported: the posterior mean is read",
        "../scripts/import_checkpoint.py",
        'torch.cat([torch.zeros(width, width), around["read"]], 1)',
        'torch.cat([around["read"], torch.zeros(width, width)], 1)',
        "import_checkpoint",
    ),
    Bug(
        "imported: a skip",
        "../scripts/import_checkpoint.py",
        "own.skip.zero_()",
        "pass",
        "import_checkpoint",
    ),
    Bug(
        "imported: time times two",
        "../scripts/import_checkpoint.py",
        'own.time.weight[:, TIME_FEATURES:] = around["time"]',
        'own.time.weight[:, TIME_FEATURES:] = 2 * around["time"]',
        "import_checkpoint",
    ),
    Bug(
        "imported: one table",
        "../scripts/import_checkpoint.py",
        'own.process.embedding.weight.copy_(around["table"])',
        "pass",
        "import_checkpoint",
    ),
    Bug(
        "imported: equal logits at first unread",
        "../scripts/import_checkpoint.py",
        "torch.zeros(width) if zeros else previous @ table.mean(0)",
        "torch.zeros(width)",
        "import_checkpoint",
    ),
    Bug(
        "a gap may end the text",
        "denoiser.py",
        'logits[..., self.eos_id] += BARRED * inputs["mask"]',
        "pass",
        "infill",
    ),
    Bug(
        "gaps of unequal length",
        "layout.py",
        "count * (i + 1) // gaps - count * i // gaps",
        "count // gaps",
        "infill",
    ),
    Bug(
        "gaps without a token",
        "layout.py",
        "torch.maximum(least_length(controls, written), own + gaps)",
        "least_length(controls, written)",
        "infill",
    ),
    Bug(
        "controls count the end of a text with gaps twice",
        "layout.py",
        "written = own - (gaps > 0).long()",
        "written = own",
        "infill",
    ),
    Bug(
        "a length told from both sides of a gap",
        "layout.py",
        "takewhile(lambda i: i != OPEN, ids)",
        "filter(lambda i: i != OPEN, ids)",
        "infill",
    ),
    Bug(
        "the space before a gap is given",
        "tokenizer.py",
        "else stop + 1",
        "else stop",
        "infill",
    ),
    Bug(
        "a gap for every token of the stand-in",
        "tokenizer.py",
        "elif found[0] != last:",
        "else:",
        "infill",
    ),
    Bug(
        "gaps inside words",
        "tokenizer.py",
        "if inside or",
        "if",
        "infill",
    ),
    Bug(
        "blocks of a saved model with gaps",
        "generation.py",
        'names = ["block_length"] if gap is not None or special else []',
        "names = []",
        "import_checkpoint",
    ),
    Bug(
        "unknown characters learned",
        "diffusion.py",
        "mask = mask & (self.denoiser.bar[ids] == 0)",
        "pass",
        "pretrained",
    ),
    Bug(
        "a pretrained network without dropout",
        "train.py",
        "        self.model.train()\n",
        "",
        "pretrained",
    ),
    Bug(
        "padding beyond the last position",
        "pretrained.py",
        "order[:, : int(valid.sum(1).max())]",
        "order",
        "pretrained",
    ),
    Bug(
        "weights read on the device",
        "pretrained.py",
        'with torch.device("cpu"):',
        "if True:",
        "pretrained",
    ),
    Bug(
        "a time that is not told",
        "pretrained.py",
        "h = h + self.time(",
        "h = h + 0 * self.time(",
        "pretrained",
    ),
    Bug(
        "a drawn token from all of them",
        "decoder.py",
        "if self.p < 1:",
        "if False:",
        "decoder",
    ),
    Bug(
        "masks that never lift",
        "process/discrete.py",
        "become = (1 - a) * k_s * pi",
        "become = 0 * pi",
        "discrete",
    ),
    Bug(
        "tokens leave the mask twice as often",
        "process/discrete.py",
        "stay = a * k_s * (x_t == clean) + a * (1 - k_s) * pi",
        "stay = a * k_s * (x_t == clean)",
        "discrete",
    ),
    Bug(
        "an unmasked token changes",
        "process/discrete.py",
        "(u < stay) | (total == 0)",
        "u < stay",
        "discrete",
    ),
    Bug(
        "random words among masks forgotten",
        "process/discrete.py",
        "return torch.where(u < self.replace, word, self.mask_id)",
        "return torch.full_like(word, self.mask_id)",
        "discrete",
    ),
    Bug(
        "noise at time zero",
        "process/tokens.py",
        "((torch.sigmoid(-self.schedule.gamma(t)) - last) / (first - last)).clamp(0, 1)",
        "torch.sigmoid(-self.schedule.gamma(t))",
        "discrete",
    ),
    Bug(
        "signal where there is noise alone",
        "process/discrete.py",
        "((kept + other) / other).log()",
        "(kept / other).clamp(min=TINY).log()",
        "discrete",
    ),
    Bug(
        "drift without its factor",
        "sampler/solver.py",
        "drift * x_t - diffusion *",
        "x_t - diffusion *",
        "laws",
    ),
    Bug(
        "half the diffusion",
        "sampler/solver.py",
        "(width * diffusion).sqrt()",
        "(width * diffusion / 2).sqrt()",
        "laws",
    ),
    Bug(
        "Heun's second slope at the old level",
        "sampler/solver.py",
        "x_s, s)) / rho_s",
        "x_s, s)) / rho_t",
        "solver laws",
    ),
    Bug("Heun that is Euler", "sampler/solver.py", "(first + second) / 2", "first", "solver"),
    Bug(
        "DPM-Solver without its history", "sampler/solver.py", "[x_0, now, *history[:2]]", "[]", "solver"
    ),
    Bug(
        "a bend of the wrong sign",
        "sampler/solver.py",
        "x_s - alpha_s * ((decay",
        "x_s + alpha_s * ((decay",
        "solver",
    ),
    Bug(
        "Langevin steps twice as noisy",
        "sampler/solver.py",
        "(2 * self.epsilon) ** 0.5",
        "2 * self.epsilon ** 0.5",
        "laws",
    ),
    Bug(
        "norms over the batch",
        "sampler/solver.py",
        "sum((1, 2), keepdim=True)",
        "sum().expand(len(x), 1, 1)",
        "laws solver",
    ),
    Bug(
        "churn without noise",
        "sampler/solver.py",
        "t + self.gamma * (t - s)",
        "t + 0 * (t - s)",
        "solver",
    ),
    Bug(
        "errors by their mean",
        "sampler/ode.py",
        "norm=max_norm",
        "norm=lambda y: y.square().mean(1).sqrt()",
        "laws",
    ),
    Bug(
        "bound without the weight of a part",
        "likelihood.py",
        "+= width * torch.where(index > 0",
        "+= torch.where(index > 0",
        "likelihood",
    ),
    Bug(
        "bound in any order, unweighted",
        "likelihood.py",
        "(nats * count / (count - given)",
        "(nats",
        "likelihood",
    ),
    Bug(
        "density without the trace",
        "likelihood.py",
        "(size - trace)[:, None]",
        "(size + 0 * trace)[:, None]",
        "likelihood",
    ),
    Bug(
        "SNR of the wrong sign",
        "process/gaussian.py",
        "(-self.schedule.gamma(s)).exp()",
        "self.schedule.gamma(s).exp()",
        "likelihood",
    ),
    Bug(
        "noise on with the whole variance",
        "process/gaussian.py",
        "sigma_t**2 - (ratio * sigma_s) ** 2",
        "sigma_t**2",
        "laws",
    ),
    Bug(
        "posterior without the share of noise",
        "process/discrete.py",
        "(0, 1)) + pi * lost",
        "(0, 1)) + 0 * pi * lost",
        "likelihood discrete",
    ),
    Bug("tokens kept too often", "process/discrete.py", "* k_s < k_t", "* k_t < k_s", "laws"),
    Bug(
        "sub-VP with the variance of VP",
        "schedule.py",
        "alpha_bar.sqrt().float(), (1 - alpha_bar).float()",
        "alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()",
        "schedule",
    ),
    Bug("diffusion without sigma", "schedule.py", "self(t)[1].square() * slope", "slope", "schedule"),
    Bug(
        "given words clean where they are replaced",
        "sampler/given.py",
        "corrupt(self.process.encode(self.ids), t,",
        "corrupt(self.process.encode(self.ids), 0 * t,",
        "infill",
    ),
    Bug("no way back", "sampler/given.py", "i + 1 < self.repeats", "False", "infill"),
    Bug(
        "the end of a text is repaired",
        "layout.py",
        "valid.sum(1, keepdim=True) - 1)",
        "valid.sum(1, keepdim=True))",
        "infill",
    ),
    Bug(
        "probabilities of zero in a gradient",
        "process/discrete.py",
        "torch.special.xlogy(true, model.clamp(min=TINY))",
        "torch.special.xlogy(true, model)",
        "laws axes",
    ),
    Bug(
        "ELBO without its number of steps", "objective.py", "return STEPS * torch", "return torch", "laws"
    ),
    Bug(
        "the bound where all others are pure noise",
        "diffusion.py",
        "torch.where(settled[:, None], nll, self.objective(*known))",
        "self.objective(*known)",
        "axes",
    ),
]


def run_tests(folder: Path, files: str) -> str:
    """The first test that fails, or an empty string."""
    paths = [f"tests/test_{name}.py" for name in files.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *paths]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert result.returncode in (0, 1), result.stdout[-2000:] + result.stderr[-2000:]
    return lines[0].split(" - ")[0].split("tests/")[-1] if lines else ""


def plant(bug: Bug, folder: Path) -> str:
    """Run the tests with one bug, then mend it."""
    path = folder / "textdiff" / bug.file
    clean = path.read_text(encoding="utf-8")
    assert clean.count(bug.right) == 1, f"{bug.file} must hold once: {bug.right}"
    path.write_text(clean.replace(bug.right, bug.wrong), encoding="utf-8")
    try:
        return run_tests(folder, bug.tests)
    finally:
        path.write_text(clean, encoding="utf-8")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("textdiff", "tests", "scripts", "configs", "benchmarks"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        files = " ".join(sorted({file for bug in BUGS for file in bug.tests.split()}))
        broken = run_tests(folder, files)
        assert not broken, f"fails without any bug: {broken}"
        print("| bug | file | caught by |\n|---|---|---|")
        missed = 0
        for bug in BUGS:
            test = plant(bug, folder)
            missed += not test
            print(f"| {bug.name} | {bug.file} | {f'`{test}`' if test else '**nobody**'} |", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
