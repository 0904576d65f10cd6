// How the library says that something failed: through TensorRT's logger and its error recorder, never otherwise.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

#include <NvInferRuntime.h>

namespace edgeattn
{

// Where TensorRT tells a plugin library to find its logger.
void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

// Log an error, and record it where there is a recorder.
void report(std::string const& message, nvinfer1::IErrorRecorder* recorder = nullptr) noexcept;

// What a function returns, or `failed` where it throws: nothing may be thrown across the library's border.
template <typename Result, typename Function>
Result guarded(Result failed, nvinfer1::IErrorRecorder* recorder, Function&& function) noexcept
{
    try
    {
        return function();
    }
    catch (std::exception const& error)
    {
        report(error.what(), recorder);
        return failed;
    }
    catch (...)
    {
        report("unknown exception", recorder);
        return failed;
    }
}

}  // namespace edgeattn
