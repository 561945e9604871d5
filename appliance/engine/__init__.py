"""The inference engine: onnxruntime sessions, key/value caches, generation, scheduling."""

from appliance.system.confine import silence_vendor_telemetry

# Here, because this runs before any module of the engine can import onnxruntime.
silence_vendor_telemetry()
