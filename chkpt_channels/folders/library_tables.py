"""Tables of libraries: the keys of their configurations, and the models that no configuration can change.

Source: transformers 5.23 (every configuration and model of a network that sees images), timm 1.0.31, diffusers 0.42, keras-hub
0.32, csbdeep 0.8, stardist 0.9.
"""

from __future__ import annotations

CONFIG = "config.json"
PIPELINE = "model_index.json"
"""What diffusers' folder of components has."""
PREPROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "preprocessor.json",
    "image_converter.json",
    "task.json",
)
COUNTS = frozenset(
    {
        "num_channels",
        "in_channels",
        "in_chans",
        "in_chan",
        "input_channels",
        "num_input_channels",
        "image_channels",
        "img_channels",
        "stem_num_channels",
        "conditioning_channels",
        "n_channel_in",
    }
)
"""The keys that hold the number of input channels."""
SIZE_KEYS = frozenset({"input_size", "test_input_size"})
"""timm's [channels, height, width]."""
SHAPE_KEYS = frozenset({"image_shape", "pretrain_image_shape", "net_input_shape", "unet_input_shape"})
"""Shapes of the image that keras-hub, StarDist and CSBDeep build their networks for."""
NORMALIZATION_KEYS = (("image_mean", "image_std"), ("mean", "std"))
SCALING_KEYS = ("offset", "scale")
"""The same of keras-hub's image converters."""
VISION = ("vision_config", "backbone_config", "vision_encoder", "encoder")
"""The keys of the part that takes the image, in a configuration of several parts."""
CHANNEL_KEYS = {
    "in_channels": frozenset(
        {
            "chameleon_vqgan", "cohere_compass_vision", "emu3_vqgan", "ernie4_5_vl_moe_vision", "exaone4_5_vision",
            "florence_vision", "glm4v_moe_vision", "glm4v_vision", "glm5_next_vision", "glm_image_vision",
            "glm_image_vqmodel", "glm_ocr_vision", "janus_vqgan", "lfm3_vl_vision", "qwen2_5_omni_vision_encoder",
            "qwen2_5_vl_vision", "qwen2_vl_vision", "qwen3_5_moe_vision", "qwen3_5_vision", "qwen3_omni_moe_vision_encoder",
            "qwen3_vl_moe_vision", "qwen3_vl_vision", "qwen4_exp_vision",
        }
    ),
    "in_chans": frozenset({"vjepa2"}),
    "input_channels": frozenset({"flava_image_codebook"}),
    "stem_num_channels": frozenset({"textnet"}),
}  # fmt: skip
"""transformers' models by the key of their input channels, where it is not num_channels."""
TIMM_WRAPPERS = frozenset({"timm_wrapper", "gemma3n_vision"})
"""transformers' models that timm builds, by the in_chans of their model_args."""
WIDTH_KEYS = {"stem_channels": frozenset({"hgnet_v2", "pp_lcnet_v4"})}
"""Lists of widths that begin with the image's channels, by the models in which they do."""
_FIXED = "transformers builds this model for one number of channels, whatever its configuration says"
FIXED_CHANNELS = {
    **dict.fromkeys(
        (
            "blip_vision_model", "blip_2_vision_model", "instructblip_vision_model", "instructblipvideo_vision_model",
            "kimi_k25_vision", "pp_lcnet", "pp_lcnet_v3", "superpoint", "uvdoc_backbone",
        ),
        _FIXED,
    ),
    **dict.fromkeys(("blip", "blip-2", "instructblip", "instructblipvideo", "kimi_k25"), _FIXED),
    "glm_ocr_vision": "transformers derives other widths of this model from the number of channels",
    "swin2sr": "transformers subtracts a mean in this model where it takes three channels, and none otherwise",
}  # fmt: skip
"""Models that would not load, or not compute the same, with another number of channels, and why."""
JOINED: dict[str, tuple[tuple[str, ...], tuple[str, str, int]]] = {
    "vitmatte": (
        ("backbone.embeddings.projection", "decoder.convstream.convs.0.conv"),
        ("decoder.fusion_blocks.{}.conv.conv", "fusion_hidden_sizes", 4),
    )
}
"""Models whose last layer of several takes the image joined to features: the first convs, and the layer's name with the list that
counts the layers, or their usual number."""
RECONSTRUCTS = r"For(PreTraining|MaskedImageModeling)$|^UNet[12]DModel$|^(Asymmetric)?Autoencoder|^VQModel$"
"""Class names of networks that give the image back: the number of channels sets the input of the encoder, and in transformers
the output of the decoder too."""
_CONDITIONED = {"controlnet_cond_embedding.conv_in": "conditioning_channels", "conv_in": "in_channels"}
FIRST_CONV = {
    **{
        name: {"conv_in": "in_channels"}
        for name in ("UNet2DModel", "UNet2DConditionModel", "UNet3DConditionModel", "UNetSpatioTemporalConditionModel")
    },
    **{
        name: {"encoder.conv_in": "in_channels"}
        for name in (
            "AutoencoderKL",
            "AsymmetricAutoencoderKL",
            "AutoencoderKLTemporalDecoder",
            "AutoencoderKLWan",
            "AutoencoderKLQwenImage",
            "AutoencoderDC",
            "VQModel",
        )
    },
    "AutoencoderTiny": {"encoder.layers.0": "in_channels"},
    "ControlNetModel": _CONDITIONED,
    "ControlNetUnionModel": _CONDITIONED,
    "ControlNetXSAdapter": {"controlnet_cond_embedding.conv_in": "conditioning_channels"},
}
"""diffusers' names of the first convs, that of the image before those of latents, each with the key of its channels: with a
latent of 4 or more channels as its image, shapes alone do not show it."""
