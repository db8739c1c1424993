// swift-tools-version:5.9
// Edgekit for iOS and macOS. onnxruntime: the XCFramework that Microsoft publishes, by its own package.
import PackageDescription

let package = Package(
    name: "Edgekit",
    platforms: [.iOS(.v15), .macOS(.v13)],
    products: [.library(name: "Edgekit", targets: ["Edgekit"])],
    dependencies: [.package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "1.20.0")],
    targets: [
        .target(name: "CEdgekit", dependencies: [.product(name: "onnxruntime", package: "onnxruntime-swift-package-manager")]),
        .target(name: "Edgekit", dependencies: ["CEdgekit"]),
    ]
)
