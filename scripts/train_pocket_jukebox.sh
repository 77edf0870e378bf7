#!/usr/bin/env bash
# Makes tunesmith/pocket-jukebox from nothing: songs, VQ-VAE, codes, top prior, upsampler, the model, figures and card.
#
#     scripts/train_pocket_jukebox.sh WORK [STAGE]...
#
# Stages are sing vqvae encode prior upsampler assemble pack judge, by default all; each goes on where it stopped.  SONGS,
# STEPS_VQVAE, STEPS_PRIOR and STEPS_UPSAMPLER say how much of each, HOURS_VQVAE, HOURS_PRIOR and HOURS_UPSAMPLER when a
# call stops; docs/corpus.md says what is sung, and why the model has the sizes that it has.
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=$1; shift
STAGES=${*:-sing vqvae encode prior upsampler assemble pack judge}
SEED=0

seconds() { awk "BEGIN { print $1 * 3600 }"; }

sing() {
    python -m tunesmith.training.corpus.singing_folder "$WORK/songs" --split train --songs "${SONGS:-6000}" --seed $SEED
    python -m tunesmith.training.corpus.singing_folder "$WORK/songs" --split validation --songs 200 --seed $SEED
}

vqvae() {
    tunesmith train small_vqvae --data "$WORK/songs" --run "$WORK/vqvae" \
        --set vqvae.sampling_rate=8000 --set vqvae.res_downs_t=[2,1] --set vqvae.res_strides_t=[4,4] \
        --set vqvae.res_conv_width=48 --set vqvae.loss_fn=lmix --set vqvae.lmix_l2=0.5 --set vqvae.multispectral=3 \
        --set vqvae.multispec_loss_n_fft=[512,256,128] --set vqvae.multispec_loss_hop_length=[60,30,12] \
        --set vqvae.multispec_loss_window_size=[300,150,60] \
        --set data.sample_length=16384 --set data.aug_shift=true --set schedule.batch=8 \
        --set schedule.learning_rate=0.001 --set schedule.steps="${STEPS_VQVAE:-3200}" --set schedule.curve=cosine \
        --set schedule.ema=none --set schedule.save_every=0 --set schedule.budget_seconds="$(seconds "${HOURS_VQVAE:-1}")"
}

encode() {
    tunesmith data encode "$WORK/songs" --codec "$WORK/vqvae/model" --out "$WORK/codes" --test-share 0.02 \
        --shard-songs 128
}

LABELLED=(--set prior.min_duration=4 --set prior.max_duration=8.2 --set prior.timing_dims=32)

prior() {
    tunesmith train small_single_enc_dec_prior --data "$WORK/codes" --vqvae "$WORK/vqvae" --run "$WORK/prior" \
        --set prior.n_ctx=512 --set prior.nb_relevant_lyric_tokens=48 --set prior.blocks=16 \
        --set prior.hidden_size=192 --set prior.num_layers=6 --set prior.n_heads=4 \
        --set prior.attention_pattern=full_dense_attention --set prior.attention_multiplier=1 --set prior.mlp_multiplier=2 \
        --set prior.alignment_layer=none --set prior.alignment_head=none "${LABELLED[@]}" \
        --set schedule.checkpointing=false --set schedule.bfloat16=true --set schedule.batch=16 \
        --set schedule.optimizer=muon --set schedule.learning_rate=0.003 --set schedule.ema=none \
        --set schedule.steps="${STEPS_PRIOR:-2000}" --set schedule.curve=cosine --set schedule.save_every=0 \
        --set schedule.budget_seconds="$(seconds "${HOURS_PRIOR:-2}")"
}

upsampler() {
    tunesmith train small_upsampler --data "$WORK/codes" --vqvae "$WORK/vqvae" --run "$WORK/upsampler" --level 0 \
        --set prior.n_ctx=512 --set prior.blocks=16 --set prior.hidden_size=160 --set prior.num_layers=6 \
        --set prior.n_heads=2 --set prior.attention_multiplier=1 --set prior.res_conv_width=96 --set prior.res_conv_depth=4 \
        --set prior.metadata_conditioning=true --set prior.max_nb_genres=1 "${LABELLED[@]}" \
        --set schedule.checkpointing=false --set schedule.bfloat16=true --set schedule.batch=16 \
        --set schedule.optimizer=muon --set schedule.learning_rate=0.003 --set schedule.ema=none \
        --set schedule.steps="${STEPS_UPSAMPLER:-900}" --set schedule.curve=cosine --set schedule.save_every=0 \
        --set schedule.budget_seconds="$(seconds "${HOURS_UPSAMPLER:-1}")"
}

assemble() {
    tunesmith assemble "$WORK/pocket-jukebox" --vqvae "$WORK/vqvae/model" --prior "$WORK/prior/model" \
        --upsampler "$WORK/upsampler/model"
}

pack() {
    python scripts/pack_pocket_jukebox.py "$WORK/pocket-jukebox" --vqvae "$WORK/vqvae" --prior "$WORK/prior" \
        --upsampler "$WORK/upsampler" --target "$WORK/box/pocket-jukebox"
}

judge() {
    python scripts/evaluate_pocket_jukebox.py "$WORK/box/pocket-jukebox" --work "$WORK/judged"
    python scripts/make_jukebox_card.py "$WORK/box/pocket-jukebox"
}

for stage in $STAGES; do $stage; done
