#include "errors.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>

namespace edgeattn
{

namespace
{

std::atomic<nvinfer1::ILoggerFinder*> loggerFinder{nullptr};

// The major version of the TensorRT that made an object, 0 where it does not say.
std::int32_t generationOf(nvinfer1::ILoggerFinder const* finder)
{
    using Version = std::int32_t (*)();
    auto version = reinterpret_cast<Version>(dlsym(RTLD_DEFAULT, "getInferLibVersion"));
    Dl_info home{};
    if (!version && dladdr(*reinterpret_cast<void* const*>(finder), &home))  // its table of functions
    {
        void* const library = dlopen(home.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
        version = library ? reinterpret_cast<Version>(dlsym(library, "getInferLibVersion")) : nullptr;
    }
    return version ? version() / 10000 : 0;
}

}  // namespace

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    // TensorRT 11 put two functions before the only one that this class had: the other kind must not be called.
    bool const known = finder && (generationOf(finder) >= 11) == (NV_TENSORRT_MAJOR >= 11);
    loggerFinder = known ? finder : nullptr;
}

void report(std::string const& message, nvinfer1::IErrorRecorder* recorder) noexcept
{
    try
    {
        std::string const text = "edgeattn: " + message;
        nvinfer1::ILoggerFinder* const finder = loggerFinder;
        nvinfer1::ILogger* const logger = finder ? finder->findLogger() : nullptr;
        if (logger)
        {
            logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
        }
        else
        {
            std::fprintf(stderr, "%s\n", text.c_str());
        }
        if (recorder)
        {
            std::string const shorter = text.substr(0, nvinfer1::IErrorRecorder::kMAX_DESC_LENGTH);
            recorder->reportError(nvinfer1::ErrorCode::kFAILED_EXECUTION, shorter.c_str());
        }
    }
    catch (...)  // no memory for the words: the return code has to do
    {
    }
}

}  // namespace edgeattn
