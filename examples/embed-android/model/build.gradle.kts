// The bundle's two files, in src/main/assets/bundle/, installed with the app; more than 200 MB may not be part of it.
plugins {
    id("com.android.asset-pack")
}

assetPack {
    packName = "model"
    dynamicDelivery { deliveryType = "install-time" }
}
