plugins {
    id("com.android.application")
    kotlin("android")
}

android {
    namespace = "org.example.assistant"
    compileSdk = 35
    defaultConfig {
        applicationId = "org.example.assistant"
        minSdk = 24
        targetSdk = 35
        versionCode = 1
        versionName = "1.0"
        ndk { abiFilters += "arm64-v8a" }
    }
    // The loader in C, which `edgekit embed` wrote; it links with the libonnxruntime.so of the .aar below.
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
    assetPacks += ":model"
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.23.0")
}
