// swift-tools-version:5.9
// Edgekit for iOS and macOS. llama.cpp: the XCFramework of one of its releases (llama-bNNNN-xcframework.zip), unpacked to this folder.
import PackageDescription

let package = Package(
    name: "Edgekit",
    platforms: [.iOS("16.4"), .macOS("13.3")],
    products: [.library(name: "Edgekit", targets: ["Edgekit"])],
    targets: [
        .binaryTarget(name: "llama", path: "llama.xcframework"),
        .target(name: "CEdgekit", dependencies: ["llama"]),
        .target(name: "Edgekit", dependencies: ["CEdgekit"]),
    ]
)
