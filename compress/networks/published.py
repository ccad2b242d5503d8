"""The table of reference networks: builder, published input shape, published parameter count and multiply-adds, sources.

Input shapes are those of `get_input_spec` in quic/ai-hub-models; parameter counts those of the papers, of torchvision's documentation or of the
model's `info.yaml` there; multiply-adds those of torchvision's documentation or of the papers (half of the FLOPs where FLOPs are given).
"""

from __future__ import annotations

import torch

from mcompress.compress.models.rrdb import rrdb
from mcompress.compress.networks import (
    blaze,
    detection,
    from_transformers,
    high_resolution,
    image_classifiers,
    inpainting,
    segmentation,
    small_segmentation,
    super_resolution,
    video_classifiers,
    vision_transformers,
    yolov6,
)
from mcompress.compress.networks.diffusion import DIFFUSION
from mcompress.compress.networks.mobileone import MOBILEONE
from mcompress.compress.networks.reference import AI_HUB, ReferenceNetwork
from mcompress.compress.networks.talking_faces import TALKING_FACES

PHOTO, LOW_RESOLUTION, SQUARE, DETECTED = (1, 3, 224, 224), (1, 3, 128, 128), (1, 3, 256, 256), (1, 3, 640, 640)
STREET, HALF_STREET, HOLED, CLIP = (1, 3, 1024, 2048), (1, 3, 512, 1024), (1, 4, 512, 512), (1, 3, 16, 112, 112)
TEXT = (1, 384)
ALBERT_BASE_V2 = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu_new"}
TORCHVISION = "torchvision's documentation"
ULTRALYTICS = "https://docs.ultralytics.com/models/"

ic, det, seg, video, vit, hf = image_classifiers, detection, segmentation, video_classifiers, vision_transformers, from_transformers

NETWORKS: dict[str, ReferenceNetwork] = {
    "resnet18": ReferenceNetwork(
        lambda: ic.resnet((2, 2, 2, 2), bottleneck=False), PHOTO, 11_689_512, f"arXiv 1512.03385; {TORCHVISION}", 1.814, normalized=True
    ),
    "resnet50": ReferenceNetwork(
        lambda: ic.resnet((3, 4, 6, 3), bottleneck=True), PHOTO, 25_557_032, f"arXiv 1512.03385; {TORCHVISION}", 4.089, normalized=True
    ),
    "wideresnet50": ReferenceNetwork(
        lambda: ic.resnet((3, 4, 6, 3), bottleneck=True, base=128), PHOTO, 68_883_240, f"arXiv 1605.07146; {TORCHVISION}", 11.398, normalized=True
    ),
    "resnext50": ReferenceNetwork(
        lambda: ic.resnet((3, 4, 6, 3), bottleneck=True, groups=32, base=4),
        PHOTO,
        25_028_904,
        f"arXiv 1611.05431; {TORCHVISION}",
        4.230,
        normalized=True,
    ),
    "resnext101": ReferenceNetwork(
        lambda: ic.resnet((3, 4, 23, 3), bottleneck=True, groups=32, base=8),
        PHOTO,
        88_791_336,
        f"arXiv 1611.05431; {TORCHVISION}",
        16.414,
        normalized=True,
    ),
    "regnet": ReferenceNetwork(ic.regnet_x_3_2gf, PHOTO, 15_296_552, f"arXiv 2003.13678; {TORCHVISION}", 3.177, normalized=True),
    "squeezenet1_1": ReferenceNetwork(ic.squeezenet1_1, PHOTO, 1_235_496, f"arXiv 1602.07360; {TORCHVISION}", 0.349, normalized=True),
    "densenet121": ReferenceNetwork(ic.densenet121, PHOTO, 7_978_856, f"arXiv 1608.06993; {TORCHVISION}", 2.834, normalized=True),
    "mobilenet_v1": ReferenceNetwork(ic.mobilenet_v1, PHOTO, 4_231_976, "arXiv 1704.04861", 0.569, normalized=True),
    "mobilenet_v2": ReferenceNetwork(ic.mobilenet_v2, PHOTO, 3_504_872, f"arXiv 1801.04381; {TORCHVISION}", 0.301, normalized=True),
    "mobilenet_v3_large": ReferenceNetwork(
        lambda: ic.mobilenet_v3(large=True), PHOTO, 5_483_032, f"arXiv 1905.02244; {TORCHVISION}", 0.217, normalized=True
    ),
    "mobilenet_v3_small": ReferenceNetwork(
        lambda: ic.mobilenet_v3(large=False), PHOTO, 2_542_856, f"arXiv 1905.02244; {TORCHVISION}", 0.057, normalized=True
    ),
    "shufflenet_v2": ReferenceNetwork(ic.shufflenet_v2_x0_5, PHOTO, 1_366_792, f"arXiv 1807.11164; {TORCHVISION}", 0.040, normalized=True),
    "efficientnet_v2_s": ReferenceNetwork(ic.efficientnet_v2_s, PHOTO, 21_458_488, f"arXiv 2104.00298; {TORCHVISION}", None, normalized=True),
    "convnext_base": ReferenceNetwork(
        lambda: ic.convnext((128, 256, 512, 1024), (3, 3, 27, 3)), PHOTO, 88_591_464, f"arXiv 2201.03545; {TORCHVISION}", 15.355, normalized=True
    ),
    "vit": ReferenceNetwork(vit.ViT, PHOTO, 86_567_656, f"arXiv 2010.11929; {TORCHVISION}", 17.564, normalized=True),
    "swin_tiny": ReferenceNetwork(
        lambda: vit.Swin(96, (2, 2, 6, 2), 3), PHOTO, 28_288_354, f"arXiv 2103.14030; {TORCHVISION}", 4.491, normalized=True
    ),
    "swin_small": ReferenceNetwork(
        lambda: vit.Swin(96, (2, 2, 18, 2), 3), PHOTO, 49_606_258, f"arXiv 2103.14030; {TORCHVISION}", 8.741, normalized=True
    ),
    "swin_base": ReferenceNetwork(
        lambda: vit.Swin(128, (2, 2, 18, 2), 4), PHOTO, 87_768_224, f"arXiv 2103.14030; {TORCHVISION}", 15.431, normalized=True
    ),
    "facemap_3dmm": ReferenceNetwork(lambda: ic.HalfWidthResNet(265), LOW_RESOLUTION, 5_424_000, f"{AI_HUB}facemap_3dmm"),
    "yamnet": ReferenceNetwork(lambda: ic.mobilenet_v1(521, 1), (1, 1, 96, 64), 3_730_000, f"arXiv 1704.04861; {AI_HUB}yamnet"),
    "quicksrnetsmall": ReferenceNetwork(lambda: super_resolution.quicksrnet(2), LOW_RESOLUTION, 33_264, "arXiv 2303.04336"),
    "quicksrnetmedium": ReferenceNetwork(lambda: super_resolution.quicksrnet(5), LOW_RESOLUTION, 61_008, "arXiv 2303.04336"),
    "xlsr": ReferenceNetwork(super_resolution.XLSR, LOW_RESOLUTION, 28_016, f"arXiv 2105.10288; {AI_HUB}xlsr"),
    "real_esrgan_x4plus": ReferenceNetwork(rrdb, LOW_RESOLUTION, 16_697_987, f"arXiv 2107.10833; {AI_HUB}real_esrgan_x4plus"),
    "esrgan": ReferenceNetwork(rrdb, LOW_RESOLUTION, 16_697_987, f"arXiv 1809.00219; {AI_HUB}esrgan"),
    "fcn_resnet50": ReferenceNetwork(
        lambda: seg.FCN(21), (1, 3, 520, 520), 33_000_000, f"arXiv 1411.4038; {AI_HUB}fcn_resnet50", None, normalized=True
    ),
    "deeplabv3_plus_mobilenet": ReferenceNetwork(
        lambda: seg.DeepLabV3Plus(21), (1, 3, 520, 520), 5_800_000, f"arXiv 1802.02611; {AI_HUB}deeplabv3_plus_mobilenet", None, normalized=True
    ),
    "ffnet_40s": ReferenceNetwork(lambda: seg.ffnet_s((4, 5, 6, 4)), STREET, 13_900_000, f"arXiv 2206.08236; {AI_HUB}ffnet_40s", normalized=True),
    "ffnet_78s": ReferenceNetwork(lambda: seg.ffnet_s((6, 12, 12, 8)), STREET, 27_500_000, f"arXiv 2206.08236; {AI_HUB}ffnet_78s", normalized=True),
    "ffnet_122ns_lowres": ReferenceNetwork(
        seg.ffnet_122ns_low_resolution, HALF_STREET, 32_100_000, f"arXiv 2206.08236; {AI_HUB}ffnet_122ns_lowres", normalized=True
    ),
    "ddrnet23_slim": ReferenceNetwork(
        seg.DDRNet23Slim, STREET, 5_700_000, f"arXiv 2101.06085, table of Cityscapes results; {AI_HUB}ddrnet23_slim", 36.3, normalized=True
    ),
    "pidnet": ReferenceNetwork(
        seg.PIDNetS, STREET, 7_600_000, f"arXiv 2206.02066, table of Cityscapes results; {AI_HUB}pidnet", 47.6, normalized=True
    ),
    "yolov3": ReferenceNetwork(det.YoloV3Tiny, DETECTED, 12_200_000, f"arXiv 1804.02767; {ULTRALYTICS}yolov3 (yolov3-tinyu)", 9.5),
    "yolov8_det": ReferenceNetwork(lambda: det.yolov8(0.25, 0.33, 1024), DETECTED, 3_157_200, f"{ULTRALYTICS}yolov8 (yolov8n)", 4.35),
    "yolov8_seg": ReferenceNetwork(lambda: det.yolov8(0.25, 0.33, 1024, masks=32), DETECTED, 3_409_968, f"{ULTRALYTICS}yolov8 (yolov8n-seg)", 6.0),
    "yolov10_det": ReferenceNetwork(det.yolov10n, DETECTED, 2_300_000, f"arXiv 2405.14458; {ULTRALYTICS}yolov10", 3.35),
    "yolov11_det": ReferenceNetwork(det.yolo11n, DETECTED, 2_624_080, f"{ULTRALYTICS}yolo11 (yolo11n)", 3.25),
    "yolov11_seg": ReferenceNetwork(lambda: det.yolo11n(masks=32), DETECTED, 2_876_848, f"{ULTRALYTICS}yolo11 (yolo11n-seg)", None),
    "yolox": ReferenceNetwork(det.YoloX, DETECTED, 8_970_000, f"arXiv 2107.08430; {AI_HUB}yolox", 13.4),
    "yolov6": ReferenceNetwork(yolov6.YoloV6N, DETECTED, 4_680_000, f"arXiv 2301.05586; {AI_HUB}yolov6", 5.7, parameters_within=0.01),
    "face_det_lite": ReferenceNetwork(blaze.LightFaceDetector, (1, 1, 480, 640), 878_000, f"{AI_HUB}face_det_lite"),
    "gear_guard_net": ReferenceNetwork(blaze.ProtectionDetector, (1, 3, 320, 192), 6_190_000, f"{AI_HUB}gear_guard_net"),
    "hrnet_face": ReferenceNetwork(
        lambda: high_resolution.HRNetW18(29), (1, 3, 256, 256), 9_680_000, f"arXiv 1908.07919; {AI_HUB}hrnet_face", normalized=True
    ),
    "mediapipe_pose/PoseDetector": ReferenceNetwork(blaze.PoseDetector, LOW_RESOLUTION, 815_000, f"arXiv 2006.10204; {AI_HUB}mediapipe_pose"),
    "mediapipe_pose/PoseLandmarkDetector": ReferenceNetwork(blaze.PoseLandmarks, SQUARE, 3_360_000, f"arXiv 2006.10204; {AI_HUB}mediapipe_pose"),
    "mediapipe_hand/HandDetector": ReferenceNetwork(blaze.PalmDetector, SQUARE, 1_760_000, f"arXiv 2006.10214; {AI_HUB}mediapipe_hand"),
    "mediapipe_hand/HandLandmarkDetector": ReferenceNetwork(blaze.HandLandmarks, SQUARE, 2_010_000, f"arXiv 2006.10214; {AI_HUB}mediapipe_hand"),
    "fastsam_s": ReferenceNetwork(
        lambda: det.yolov8(0.5, 0.33, 1024, classes=1, masks=32), DETECTED, 11_800_000, f"arXiv 2306.12156; {AI_HUB}fastsam_s"
    ),
    "fastsam_x": ReferenceNetwork(
        lambda: det.yolov8(1.25, 1.0, 512, classes=1, masks=32), DETECTED, 71_800_000, f"arXiv 2306.12156; {ULTRALYTICS}yolov8 (yolov8x-seg)"
    ),
    "aotgan": ReferenceNetwork(inpainting.AOTGAN, HOLED, 15_200_000, f"arXiv 2104.01431; {AI_HUB}aotgan"),
    "lama_dilated": ReferenceNetwork(inpainting.LaMaDilated, HOLED, 45_600_000, f"arXiv 2109.07161; {AI_HUB}lama_dilated"),
    "resnet_3d": ReferenceNetwork(lambda: video.VideoResNet18("3d"), CLIP, 33_371_472, f"arXiv 1711.11248; {TORCHVISION}", 40.697, normalized=True),
    "resnet_mixed": ReferenceNetwork(
        lambda: video.VideoResNet18("mixed"), CLIP, 11_695_440, f"arXiv 1711.11248; {TORCHVISION}", 43.343, normalized=True
    ),
    "resnet_2plus1d": ReferenceNetwork(
        lambda: video.VideoResNet18("2+1d"), CLIP, 31_505_325, f"arXiv 1711.11248; {TORCHVISION}", 40.519, normalized=True
    ),
    "segformer_base": ReferenceNetwork(
        hf.segformer_b0, (1, 3, 512, 512), 3_750_000, f"arXiv 2105.15203; {AI_HUB}segformer_base", 8.4, normalized=True
    ),
    "beit": ReferenceNetwork(hf.beit_base, PHOTO, 86_530_000, "arXiv 2106.08254; timm's table (beit_base_patch16_224)", 17.58, normalized=True),
    "depth_anything": ReferenceNetwork(hf.depth_anything_small, (1, 3, 518, 518), 24_800_000, "arXiv 2401.10891", None, normalized=True),
    "swinv2_base": ReferenceNetwork(hf.swin_v2_base, SQUARE, 87_930_848, f"arXiv 2111.09883; {TORCHVISION}", 20.325, normalized=True),
    "video_mae": ReferenceNetwork(
        hf.video_mae_base, (1, 3, 16, 224, 224), 86_530_000, f"arXiv 2203.12602; {AI_HUB}video_mae", 180.0, normalized=True
    ),
    "bert_base_uncased_hf": ReferenceNetwork(
        lambda: hf.masked_language_model("Bert", {}), TEXT, 110_000_000, f"arXiv 1810.04805; {AI_HUB}bert_base_uncased_hf", input_dtype=torch.int64
    ),
    "distil_bert_base_uncased_hf": ReferenceNetwork(
        lambda: hf.masked_language_model("DistilBert", {}),
        TEXT,
        67_000_000,
        "arXiv 1910.01108; https://huggingface.co/distilbert/distilbert-base-uncased",
        input_dtype=torch.int64,
    ),
    "albert_base_v2_hf": ReferenceNetwork(
        # The published 11.8 M include a pooling layer of 0.59 M that the masked language model does not have.
        lambda: hf.masked_language_model("Albert", ALBERT_BASE_V2),
        TEXT,
        11_800_000 - 590_592,
        f"arXiv 1909.11942; {AI_HUB}albert_base_v2_hf",
        input_dtype=torch.int64,
    ),
    "nomic_embed_text": ReferenceNetwork(
        hf.nomic_embed_text, (1, 128), 137_000_000, f"arXiv 2402.01613; {AI_HUB}nomic_embed_text", input_dtype=torch.int64
    ),
    "openai_clip": ReferenceNetwork(hf.clip_b16, PHOTO, 149_620_737, "arXiv 2103.00020; https://github.com/openai/CLIP (ViT-B/16)"),
    "trocr/TrOCREncoder": ReferenceNetwork(hf.trocr_small_encoder, (1, 3, 384, 384), 23_000_000, f"arXiv 2109.10282; {AI_HUB}trocr"),
    "sinet": ReferenceNetwork(small_segmentation.SINet, PHOTO, 86_900, "arXiv 1911.09099, table 1", 0.064, normalized=True),
    "mediapipe_selfie": ReferenceNetwork(small_segmentation.SelfieSegmentation, SQUARE, 106_000, f"{AI_HUB}mediapipe_selfie"),
    **MOBILEONE,
    **TALKING_FACES,
    **DIFFUSION,
}
"""Name of the published model, or model and component -> network."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "resnet": ("resnet18", "resnet50", "wideresnet50", "facemap_3dmm", "fcn_resnet50"),
    "resnext": ("resnext50", "resnext101"),
    "mobilenet_v1": ("mobilenet_v1", "yamnet"),
    "mobilenet_v2": ("mobilenet_v2", "deeplabv3_plus_mobilenet"),
    "mobilenet_v3": ("mobilenet_v3_large", "mobilenet_v3_small"),
    "mobileone": tuple(MOBILEONE),
    "swin": ("swin_tiny", "swin_small", "swin_base", "swinv2_base"),
    "vit": ("vit", "beit", "depth_anything", "openai_clip", "trocr/TrOCREncoder", "video_mae"),
    "bert": ("bert_base_uncased_hf", "distil_bert_base_uncased_hf", "albert_base_v2_hf", "nomic_embed_text"),
    "quicksrnet": ("quicksrnetsmall", "quicksrnetmedium"),
    "esrgan": ("esrgan", "real_esrgan_x4plus"),
    "ffnet": ("ffnet_40s", "ffnet_78s", "ffnet_122ns_lowres"),
    "ddrnet": ("ddrnet23_slim", "pidnet"),
    "yolov8": ("yolov8_det", "yolov8_seg", "yolov10_det", "yolov11_det", "yolov11_seg", "fastsam_s", "fastsam_x"),
    "blaze": (
        "mediapipe_pose/PoseDetector",
        "mediapipe_pose/PoseLandmarkDetector",
        "mediapipe_hand/HandDetector",
        "mediapipe_hand/HandLandmarkDetector",
    ),
    "video_resnet": ("resnet_3d", "resnet_mixed", "resnet_2plus1d"),
    "wav2lip": tuple(TALKING_FACES),
}
"""Networks of one architecture, that of one paper with what later ones took over nearly whole (FCN-ResNet50 is a ResNet with two more layers): they
differ in depth, width, heads or input, so that a validation leaves them out together. Networks with a backbone in the style of another family, but
layers, widths and a decoder of their own paper, are a family of their own: FFNet has residual blocks too, RegNet and ResNeXt have bottlenecks. Who
counts these as one family leaves out more at once, and sees larger errors. A network that is not listed is alone."""
