"""Overrides for a comparison that takes seconds."""

SMALL = [
    "run.iterations=2",
    "model.generator=tiny-gpt2",
    "task.name=bridge",
    "task.prompt_tokens=2",
    "task.response_tokens=2",
    "task.max_demonstrations=30",
    "task.bridge={board: 5, moves: 2, base_walks: 200, validation: 20, test: 30}",
    "warmup.generator={steps: 10, batch_size: 16}",
    "warmup.sft={steps: 5, batch_size: 16}",
    "warmup.discriminator.steps=2",
    "rollout={engine: transformers, batch_size: 16, samples_per_prompt: 4}",
    "discriminator={batch_size: 16, frozen_layers: 0}",
    "evaluation={num_prompts: 20, every: 0, quick_every: 0, embeddings: false}",
    "tracking.to=[]",
    "compare={methods: [sft, best_of_4, rlgaf], replicates: 1, temperatures: [1.0, 0.5], samples: 2}",
]
