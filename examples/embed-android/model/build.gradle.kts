// The bundle's two files, in src/main/assets/bundle/: installed with the app.
plugins {
    id("com.android.asset-pack")
}

assetPack {
    packName = "model"
    dynamicDelivery { deliveryType = "install-time" }
}
