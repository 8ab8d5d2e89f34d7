#!/bin/sh
# The studies of this page. Run in the folder that holds voc112 and the weights.
run() {
  name=$1
  shift
  seedbed study "$name" --dataset voc2012 --root voc112 --backbone squeezenet \
    --weights squeezenet1_0_imagenet.pth "$@"
}
CAM="TrainCam.epochs=5 InferCam.scales=1.0"
RRM="$CAM TrainRrm.epochs=2 TrainRrm.cam_scales=1.0"
ICD="TrainIcd.epochs=5 TrainIcd.warm_up_epochs=1"
SVM="TrainSplittingMerging.epochs=5"
ESOL="TrainEsolClassifier.epochs=5 TrainEsolClassifier.kernel=1 TrainEsolClassifier.head_multiplier=5"
ESOL="$ESOL TrainEsolClassifier.noise=0.01 Expand.epochs=1 Shrink.epochs=1 InferCam.scales=1.0"

run icd_t1 --seeds 0 1 2 --set $ICD
run icd_t3 --seeds 0 1 2 --set $ICD
run esol_t6 --seeds 0 1 2 --set $ESOL
run rrm_t2 --seeds 0 1 2 --set $RRM
run svm_t3 --seeds 0 1 2 --set $SVM
run svm_t2 --seeds 0 1 2 --set $SVM
run svm_t1 --seeds 0 1 2 --set $SVM
run sccam_t3_2 --seeds 0 1 2 --set $CAM TrainSubcategories.epochs=5
run mixup_t2_1 --seeds 0 1 2 --set $CAM TrainMixupCam.epochs=5 TrainPsa.epochs=2
run rrm_t1 --seeds 0 --set $RRM
run rrm_t2 --name rrm_t2-8-epochs --seeds 0 1 2 --set $CAM TrainRrm.epochs=8 TrainRrm.cam_scales=1.0
