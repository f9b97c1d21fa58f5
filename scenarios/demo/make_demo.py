"""Makes the demo model: text, tokenizer, training, and the files beside this script.

    python make_demo.py                 # everything, about 13 minutes on one core
    python make_demo.py --steps 300     # a quick look, for working on the script

Run by hand when the demo model is to change; the build of packhost never runs
it.  Needs torch, transformers, tokenizers and safetensors (versions that made
the committed files: see README.md).  Every random choice comes from the seeds
below; on the same machine with the same versions and thread count the files
come out byte for byte the same.

Writes model/ (checkpoint and tokenizer) and eval.jsonl (documents that were
not trained on), then prints the perplexities that README.md reports.
"""

import argparse
import json
import math
import pathlib
import sys
import time

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_language import document

HERE = pathlib.Path(__file__).resolve().parent

# Training documents are document(TRAIN_FIRST + i), evaluation documents
# document(EVAL_FIRST + i); the ranges do not meet, and equal texts are dropped.
TRAIN_FIRST = 1_000_000
EVAL_FIRST = 900_000_000
TOKENIZER_DOCUMENTS = 8_000
MODEL_SEED = 20_261_123

VOCABULARY = 1024
TRAIN_LENGTH = 132  # tokens per training row, the beginning-of-text token included
EVAL_LENGTH = 128  # tokens per evaluation window
EVAL_DOCUMENTS = 800
EVAL_SHORTEST, EVAL_LONGEST = 126, 160
BATCH = 16

# Spread of the channel gains, in octaves: see spread_channels.
ATTENTION_SPREAD = 1.5
MLP_SPREAD = 1.2
SPREAD_SEED = 7


def configuration():
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def make_tokenizer(texts):
    """Byte-level byte-pair encoding that puts <s> in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    assert tokenizer.get_vocab_size() == VOCABULARY, tokenizer.get_vocab_size()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def rows_of(encodings, length):
    """Token ids, cut to `length` and padded right; label -100 where padded."""
    ids = torch.zeros((len(encodings), length), dtype=torch.long)
    labels = torch.full((len(encodings), length), -100, dtype=torch.long)
    for row, encoding in enumerate(encodings):
        tokens = torch.tensor(encoding[:length])
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens)] = tokens
    return ids, labels


def token_losses(model, ids, labels):
    """Negative log-likelihood per token, natural log, 0 where padded."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )


def learning_rate(step, steps, peak=3e-3, floor=1e-5, warmup=100):
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def train(tokenizer, steps):
    torch.manual_seed(MODEL_SEED)
    model = LlamaForCausalLM(configuration()).float()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.95),
    )
    started, seen = time.time(), 0.0
    model.train()
    for step in range(steps):
        first = TRAIN_FIRST + step * BATCH
        encodings = tokenizer.encode_batch([document(first + i) for i in range(BATCH)])
        ids, labels = rows_of([e.ids + [2] for e in encodings], TRAIN_LENGTH)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        losses = token_losses(model, ids, labels)
        loss = losses.sum() / (labels[:, 1:] != -100).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += float((labels != -100).sum())
        if step % 25 == 0 or step == steps - 1:
            elapsed = time.time() - started
            print(f"step {step:5d}  loss {loss.item():.4f}  {seen / elapsed:,.0f} tokens/s  {elapsed:,.0f} s", flush=True)
    return model


@torch.no_grad()
def spread_channels(model):
    """Gives the channels gains that differ by powers of two, without changing what the model computes.

    Large models that trained for long have channels that are far larger than
    their neighbours; that is what makes rounding and pruning hurt.  A small model
    trained for minutes has none: pruning half of it moves its perplexity by
    3 percent, which no limit notices.  So each gain s of a norm's output channel
    is divided out of the norm and multiplied into the columns that read it, and
    each gain t between two projections into the one and out of the other.
    Powers of two are exact in bf16 and f32, so logits keep their bits.
    """
    generator = torch.Generator().manual_seed(SPREAD_SEED)

    def gains(count, spread):
        return torch.exp2(torch.round(torch.randn(count, generator=generator) * spread))

    shared = model.config.num_attention_heads // model.config.num_key_value_heads
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        s = gains(model.config.hidden_size, ATTENTION_SPREAD)
        layer.input_layernorm.weight /= s
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight *= s
        t = gains(model.config.num_key_value_heads * model.config.head_dim, ATTENTION_SPREAD)
        attention.v_proj.weight /= t[:, None]
        attention.o_proj.weight *= t.view(-1, model.config.head_dim).repeat_interleave(shared, 0).flatten()
        s = gains(model.config.hidden_size, MLP_SPREAD)
        layer.post_attention_layernorm.weight /= s
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight *= s
        t = gains(model.config.intermediate_size, MLP_SPREAD)
        mlp.up_proj.weight /= t[:, None]
        mlp.down_proj.weight *= t
    return model


def evaluation_documents(tokenizer, trained_documents):
    """Documents of an even length that were not trained on."""
    trained = {document(TRAIN_FIRST + i) for i in range(trained_documents)}
    texts, i = [], 0
    while len(texts) < EVAL_DOCUMENTS:
        text = document(EVAL_FIRST + i)
        i += 1
        if text in trained or text in texts:
            continue
        if EVAL_SHORTEST <= len(tokenizer.encode(text).ids) <= EVAL_LONGEST:
            texts.append(text)
    return texts


def counting_perplexities(training, windows):
    """Unigram and interpolated bigram perplexity of the windows' tokens after the first."""
    unigram = torch.ones(VOCABULARY, dtype=torch.float64)
    bigram = torch.zeros((VOCABULARY, VOCABULARY), dtype=torch.float64)
    for tokens in training:
        tokens = torch.tensor(tokens)
        unigram.index_add_(0, tokens, torch.ones(len(tokens), dtype=torch.float64))
        bigram.index_put_((tokens[:-1], tokens[1:]), torch.ones(len(tokens) - 1, dtype=torch.float64), accumulate=True)
    unigram /= unigram.sum()
    bigram = (bigram + unigram) / (bigram.sum(1, keepdim=True) + 1.0)
    one, two, count = 0.0, 0.0, 0
    for tokens in windows:
        tokens = torch.tensor(tokens)
        one -= unigram[tokens[1:]].log().sum().item()
        two -= bigram[tokens[:-1], tokens[1:]].log().sum().item()
        count += len(tokens) - 1
    return math.exp(one / count), math.exp(two / count)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, default=2400)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--out", type=pathlib.Path, default=HERE)
    arguments = arguments.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    started = time.time()

    tokenizer = make_tokenizer(document(TRAIN_FIRST + i) for i in range(TOKENIZER_DOCUMENTS))
    texts = evaluation_documents(tokenizer, max(TOKENIZER_DOCUMENTS, arguments.steps * BATCH))
    windows = [tokenizer.encode(text).ids[:EVAL_LENGTH] for text in texts]
    real = sum(map(len, windows)) / len(windows)
    print(f"{len(texts)} evaluation documents, {real:.2f} real tokens per window, 400 hold {400 * real:,.0f}")

    model = spread_channels(train(tokenizer, arguments.steps)).to(torch.bfloat16)
    folder = arguments.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["LlamaForCausalLM"]
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    with open(arguments.out / "eval.jsonl", "w", encoding="ascii", newline="\n") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")

    # What is on disk is what is measured: bf16 weights, float32 arithmetic.
    stored = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids, labels = rows_of(windows, EVAL_LENGTH)
    total, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(ids), 64):
            part = labels[first : first + 64]
            total += token_losses(stored, ids[first : first + 64], part).double().sum().item()
            count += (part[:, 1:] != -100).sum().item()
    training = [e.ids[:EVAL_LENGTH] for e in tokenizer.encode_batch([document(TRAIN_FIRST + i) for i in range(TOKENIZER_DOCUMENTS)])]
    one, two = counting_perplexities(training, windows)
    print(f"perplexity: unigram {one:.1f}, bigram {two:.2f}, model {math.exp(total / count):.4f}")
    print(f"{time.time() - started:,.0f} s in all; python {sys.version.split()[0]}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
