plugins {
    id("com.android.application") version "8.7.3" apply false
    id("com.android.asset-pack") version "8.7.3" apply false
    kotlin("android") version "2.1.0" apply false
}
