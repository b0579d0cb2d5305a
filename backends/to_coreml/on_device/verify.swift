// Runs model.mlpackage with Apple's runtime: are the outputs the expected ones, how long is a call, what runs where?
//     swift verify.swift        (macOS 14.4 or newer, in this folder; writes device_report.json)
// Models that take images: use verify.py.

import CoreML
import CryptoKit
import Foundation

struct Sample: Decodable {
    let name: String
    let file: String
    let shape: [Int]
    let dtype: String
    let image: Bool?
    let labels: [String]?
}

struct Told: Decodable {
    let target: String
    let model: String
    let package: String
    let snr_db_least: Double
    let inputs: [Sample]
    let outputs: [Sample]
    let files: [String: String]
}

func stop(_ sentence: String) -> Never {
    FileHandle.standardError.write("Stopped: \(sentence)\n".data(using: .utf8)!)
    exit(1)
}

let here = URL(fileURLWithPath: FileManager.default.currentDirectoryPath)

func data(_ file: String) throws -> Data { try Data(contentsOf: here.appendingPathComponent(file)) }

func values(_ sample: Sample) throws -> [Double] {
    try data(sample.file).withUnsafeBytes { bytes in
        sample.dtype == "float32" ? bytes.bindMemory(to: Float32.self).map(Double.init)
                                  : bytes.bindMemory(to: Int32.self).map(Double.init)
    }
}

func array(_ sample: Sample) throws -> MLMultiArray {
    let kind: MLMultiArrayDataType = sample.dtype == "float32" ? .float32 : .int32
    let result = try MLMultiArray(shape: sample.shape.map { NSNumber(value: $0) }, dataType: kind)
    for (index, value) in try values(sample).enumerated() { result[index] = NSNumber(value: value) }
    return result
}

func numbers(_ sample: Sample, _ feature: MLFeatureValue) -> [Double] {
    if let labels = sample.labels { return labels.map { feature.dictionaryValue[$0]!.doubleValue } }
    let result = feature.multiArrayValue!
    return (0..<result.count).map { result[$0].doubleValue }
}

func compared(_ sample: Sample, _ got: [Double]) throws -> [String: Any] {
    let expected = try values(sample)
    if expected.count != got.count { stop("output \(sample.name) has \(got.count) values, not \(expected.count).") }
    let noise = zip(expected, got).map { ($0 - $1) * ($0 - $1) }.reduce(0, +)
    let signal = expected.map { $0 * $0 }.reduce(0, +)
    let largest = zip(expected, got).map { abs($0 - $1) }.max() ?? 0
    let ratio: Any = noise == 0 ? NSNull() : (signal > 0 && noise.isFinite ? 10 * log10(signal / noise) : -300.0)
    return ["name": sample.name, "snr_db": ratio, "max_abs": largest.isFinite ? largest : 1e300]
}

func system(_ name: String) -> String {
    var size = 0
    sysctlbyname(name, nil, &size, nil, 0)
    var bytes = [CChar](repeating: 0, count: size + 1)
    sysctlbyname(name, &bytes, &size, nil, 0)
    return String(cString: bytes)
}

let told = try JSONDecoder().decode(Told.self, from: data("build.json"))
for (file, sum) in told.files {
    guard let found = try? data(file) else { stop("\(file) is missing: copy the whole folder that planish wrote.") }
    let digest = SHA256.hash(data: found).map { String(format: "%02x", $0) }.joined()
    if digest != sum { stop("\(file) is damaged or was changed: copy it again.") }
}
if told.inputs.contains(where: { $0.image == true }) { stop("the model takes images: use verify.py.") }

let started = DispatchTime.now().uptimeNanoseconds
let compiled = try await MLModel.compileModel(at: here.appendingPathComponent(told.package))
let configuration = MLModelConfiguration()
configuration.computeUnits = .all
let model = try MLModel(contentsOf: compiled, configuration: configuration)
let loaded = Double(DispatchTime.now().uptimeNanoseconds - started) / 1e9
let features = try Dictionary(uniqueKeysWithValues: told.inputs.map { ($0.name, MLFeatureValue(multiArray: try array($0))) })
let inputs = try MLDictionaryFeatureProvider(dictionary: features)

let results = try await model.prediction(from: inputs)
let outputs: [[String: Any]] = try told.outputs.map { sample in
    guard let feature = results.featureValue(for: sample.name) else { stop("the model has no output \(sample.name).") }
    return try compared(sample, numbers(sample, feature))
}

var times: [Double] = []
for call in 0..<220 {
    let start = DispatchTime.now().uptimeNanoseconds
    _ = try await model.prediction(from: inputs)
    if call >= 20 { times.append(Double(DispatchTime.now().uptimeNanoseconds - start) / 1e6) }
}
times.sort()
func share(_ part: Double) -> Double { times[min(times.count - 1, Int(part * Double(times.count)))] }

var layers: [[String: String]] = []
let plan = try await MLComputePlan.load(contentsOf: compiled, configuration: configuration)
if case let .program(program) = plan.modelStructure, let main = program.functions["main"] {
    for operation in main.block.operations {
        guard let usage = plan.deviceUsage(for: operation) else { continue }
        let unit: String
        switch usage.preferred {
        case .cpu: unit = "CPU"
        case .gpu: unit = "GPU"
        case .neuralEngine: unit = "Neural Engine"
        @unknown default: unit = "other"
        }
        layers.append(["name": operation.outputs.first?.name ?? "", "type": operation.operatorName, "unit": unit])
    }
}
print("Operations by unit: \(Dictionary(grouping: layers) { $0["unit"]! }.mapValues { $0.count })")

let version = ProcessInfo.processInfo.operatingSystemVersionString
let bytes = try told.files.keys.filter { $0.hasPrefix(told.package + "/") }.map { try data($0).count }.reduce(0, +)
let report: [String: Any] = [
    "format": 1, "target": told.target, "model_sha256": told.files[told.model]!,
    "device": ["device": "\(system("machdep.cpu.brand_string")) (\(system("hw.model")))", "system": "macOS \(version)",
               "units": "ALL"],
    "outputs": outputs, "latency_ms": ["p50": share(0.5), "p95": share(0.95), "p99": share(0.99)],
    "runs": times.count, "batch": told.inputs.first?.shape.first ?? 1,
    "when": ISO8601DateFormatter().string(from: Date()), "engine_bytes": bytes,
    "built_by": "Core ML of macOS \(version)", "build_seconds": loaded, "layers": layers,
]
let written = try JSONSerialization.data(withJSONObject: report, options: [.prettyPrinted, .sortedKeys])
try written.write(to: here.appendingPathComponent("device_report.json"), options: .atomic)
print("Latency: p50 \(share(0.5)) ms, p95 \(share(0.95)), p99 \(share(0.99)).")
let worst = outputs.compactMap { $0["snr_db"] as? Double }.min()
if let worst = worst, worst < told.snr_db_least {
    stop("the outputs are \(worst) dB from the expected ones, \(told.snr_db_least) dB is the least.")
}
