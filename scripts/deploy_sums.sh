#!/usr/bin/env bash
# The runs of docs/results/deploy.md on Qwen2.5-0.5B: one mixture four ways, on sums. Arguments: the model's folder, the folder of
# `reproduce.py --preset sums-0.5b`, and a folder for the results. What is there is not run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
model=$1 runs=$2/sums-qwen2.5-0.5b out=$3
policy=$runs/fixed/seed0/checkpoints/step=0020 sft=$runs/sft/seed0/checkpoints/step=0012
student=$out/distilled/checkpoints/step=0020
lmix=(.venv/bin/python -m lmix)
gym=(dataset=chain_sum "config={min_terms: 2, max_terms: 3, min_digits: 2, max_digits: 3}" template=answer_tag "prompt={problem}"
  "system=Answer the question." seed=2)  # seed 2: problems that no run was trained or tuned on
mkdir -p "$out"
[ -e "$student.ckpt" ] || "${lmix[@]}" fit --config=configs/tasks/sums.yaml --config=configs/methods/distill.yaml \
  --model.backbone.path="$model" --model.backbone.quantization=none --model.backbone.dtype=bfloat16 \
  --model.adapters.policy="$policy" --model.adapters.reference="$sft" --model.optimizer.schedule=cosine --data.prompts_per_step=32 \
  --data.eval_size=100 --trainer.max_steps=20 --trainer.val_check_interval=10 --trainer.logger.save_dir="$out" \
  --trainer.logger.name=distilled --trainer.logger.version=
[ -e "$out/merged" ] || "${lmix[@]}" merge --base="$model" --policy="$policy" --reference="$sft" --alpha=0.5 --out="$out/merged"

evaluate() { # name, its policy, who, further flags
  [ -e "$out/$1/evaluation.json" ] || /usr/bin/time --format="$1: %e s, peak %M kB" "${lmix[@]}" evaluate --backbone.path="$model" \
    --backbone.quantization=none --backbone.dtype=bfloat16 --adapters.reference="$sft" --adapters.policy="$2" --who="[$3]" --out="$out/$1" \
    "${@:4}"
}
for way in "mixture $policy mixed" "distilled $student policy" "merged $out/merged policy" "policy $policy policy" \
  "sft $policy reference" "base base policy"; do
  read -r name folder who <<< "$way"
  evaluate "sums-$name" "$folder" "$who" --task=lmix.tasks.ReasoningGymTask "${gym[@]/#/--task.}" --problems=500 --max_new_tokens=40
done
