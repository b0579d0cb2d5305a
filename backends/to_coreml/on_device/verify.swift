// Runs model.mlpackage with Apple's runtime and compares it with samples.json:
//     swift verify.swift        (macOS 14.4 or newer, in this folder)
// Image inputs: use verify.py.

import CoreML
import Foundation

struct Sample: Decodable {
    let name: String
    let file: String?
    let shape: [Int]?
    let dtype: String?
    let image: Bool?
    let scores: [String: Double]?
}

struct Samples: Decodable {
    let model: String
    let snr_db: Double
    let inputs: [Sample]
    let outputs: [Sample]
}

let here = URL(fileURLWithPath: FileManager.default.currentDirectoryPath)

func values(_ sample: Sample) throws -> [Double] {
    let data = try Data(contentsOf: here.appendingPathComponent(sample.file!))
    return data.withUnsafeBytes { bytes in
        sample.dtype == "float32" ? bytes.bindMemory(to: Float32.self).map(Double.init)
                                  : bytes.bindMemory(to: Int32.self).map(Double.init)
    }
}

func array(_ sample: Sample) throws -> MLMultiArray {
    let kind: MLMultiArrayDataType = sample.dtype == "float32" ? .float32 : .int32
    let result = try MLMultiArray(shape: sample.shape!.map { NSNumber(value: $0) }, dataType: kind)
    for (index, value) in try values(sample).enumerated() { result[index] = NSNumber(value: value) }
    return result
}

func snr(_ expected: [Double], _ got: [Double]) -> Double {
    let noise = zip(expected, got).map { ($0 - $1) * ($0 - $1) }.reduce(0, +)
    let signal = expected.map { $0 * $0 }.reduce(0, +)
    return noise == 0 ? .infinity : 10 * log10(signal / noise)
}

func compared(_ sample: Sample, _ feature: MLFeatureValue) throws -> ([Double], [Double]) {
    if let scores = sample.scores {
        let labels = scores.keys.sorted()
        return (labels.map { scores[$0]! }, labels.map { feature.dictionaryValue[$0]!.doubleValue })
    }
    let result = feature.multiArrayValue!
    return (try values(sample), (0..<result.count).map { result[$0].doubleValue })
}

let samples = try JSONDecoder().decode(Samples.self, from: Data(contentsOf: here.appendingPathComponent("samples.json")))
let compiled = try await MLModel.compileModel(at: here.appendingPathComponent(samples.model))
let configuration = MLModelConfiguration()
configuration.computeUnits = .all
let model = try MLModel(contentsOf: compiled, configuration: configuration)
let features = try Dictionary(uniqueKeysWithValues: samples.inputs.map { ($0.name, MLFeatureValue(multiArray: try array($0))) })
let inputs = try MLDictionaryFeatureProvider(dictionary: features)

let outputs = try model.prediction(from: inputs)
var good = true
for sample in samples.outputs {
    let (expected, got) = try compared(sample, outputs.featureValue(for: sample.name)!)
    let ratio = snr(expected, got)
    good = good && ratio >= samples.snr_db
    print("\(sample.name): \(ratio) dB against the reference evaluation (\(samples.snr_db) wanted)")
}

var times: [Double] = []
for _ in 0..<50 {
    let start = DispatchTime.now().uptimeNanoseconds
    _ = try model.prediction(from: inputs)
    times.append(Double(DispatchTime.now().uptimeNanoseconds - start) / 1e6)
}
times.sort()
print("median \(times[25]) ms, 95 % below \(times[47]) ms")

let plan = try await MLComputePlan.load(contentsOf: compiled, configuration: configuration)
if case let .program(program) = plan.modelStructure, let main = program.functions["main"] {
    var counts: [String: Int] = [:]
    for operation in main.block.operations {
        guard let usage = plan.deviceUsage(for: operation) else { continue }
        switch usage.preferred {
        case .cpu: counts["CPU", default: 0] += 1
        case .gpu: counts["GPU", default: 0] += 1
        case .neuralEngine: counts["Neural Engine", default: 0] += 1
        @unknown default: counts["other", default: 0] += 1
        }
    }
    print("operations by unit: \(counts)")
}
exit(good ? 0 : 1)
